"""Facts about quantization: folding, placement, grids and training under them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import ModelError, StageError
from potstill.pipeline.fake_quantization import (
    ActivationQuantizer,
    FakeQuantizedModel,
    WeightQuantizer,
    converted,
    fake_quantized,
)
from potstill.pipeline.quantization import ActivationRange, Calibration, Quantization, capture, tensor_names
from potstill.pipeline.taps import outputs_of
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import metric_of
from potstill.stages.distill import Distill
from potstill.stages.factorize import Factorize
from potstill.stages.prune import Prune
from potstill.stages.quantization.folding import fold_batch_norms
from potstill.stages.quantization.placement import layer_paths, place
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context, Stage
from potstill.stages.train import Train

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


@pytest.fixture
def trained(new_artifact: NewArtifact, new_context: NewContext) -> Artifact:
    """A ResNet-8 that knows the task."""
    return Train(epochs=4).run(new_artifact(), new_context(step="train"))


@pytest.fixture
def wide(new_artifact: NewArtifact) -> Artifact:
    """A ResNet-8 whose linear layer reads 32 numbers."""
    return new_artifact(width=8)


def two_layers_and_a_norm() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)).eval()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3)
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.uniform_(norm.bias, -2, 2)
    return model


class TestFolding:
    def test_the_folded_network_computes_the_same(self) -> None:
        model = two_layers_and_a_norm()
        inputs = {"image": torch.randn(5, 1, 8, 8)}
        folded, edit = fold_batch_norms(model, inputs)
        assert edit.layers == {"0": "1"}
        assert isinstance(folded[1], nn.Identity)  # type: ignore[index]
        torch.testing.assert_close(folded(inputs["image"]), model(inputs["image"]), rtol=1e-4, atol=1e-5)

    def test_a_layer_with_two_readers_keeps_its_norm(self) -> None:
        class Branching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

            def forward(self, x: Tensor) -> Tensor:
                maps = self.conv(x)
                return (maps + self.norm(maps)).mean((2, 3))

        folded, edit = fold_batch_norms(Branching(), {"image": torch.randn(2, 1, 8, 8)})
        assert edit.layers == {}
        assert isinstance(folded.get_submodule("norm"), nn.BatchNorm2d)


class TestPlacement:
    def test_every_layer_of_a_resnet_has_its_weight_input_and_output_quantized(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        inputs = new_context().data.example()
        folded, _ = fold_batch_norms(new_artifact().model, inputs)
        placement = place(capture(folded, inputs))
        layers = [name for name, module in folded.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        assert set(placement.weights) == {f"{name}.weight" for name in layers}
        # A ReLU behind a layer or an addition takes the place of its output.
        assert not any(name.endswith(":add") for name in placement.activations)
        assert "layer1.0.conv1:conv2d" not in placement.activations
        assert "layer1.0.conv2:conv2d" in placement.activations
        assert "input:0" in placement.activations

    def test_flatten_lies_on_the_grid_of_what_it_flattens(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        inputs = new_context().data.example()
        placement = place(capture(fold_batch_norms(new_artifact().model, inputs)[0], inputs))
        assert placement.shared == {":flatten": "pool:adaptive_avg_pool2d"}

    def test_names_do_not_depend_on_the_tracing(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        inputs = new_context().data.example()
        names = [list(tensor_names(capture(new_artifact().model, inputs)).values()) for _ in range(2)]
        assert names[0] == names[1]
        assert len(set(names[0])) == len(names[0])


class TestQuantizers:
    def test_zero_is_exact_on_every_activation_grid(self) -> None:
        quantizer = ActivationQuantizer()
        quantizer.train()
        quantizer(torch.linspace(-0.37, 2.9, 100))
        quantizer.eval()
        assert float(quantizer(torch.zeros(1))) == 0

    def test_a_rectified_activation_has_zero_point_zero(self) -> None:
        quantizer = ActivationQuantizer()
        quantizer.train()
        quantizer(torch.rand(100))
        assert quantizer.range().zero_point == 0

    @pytest.mark.parametrize("values", [torch.rand(100), torch.randn(100), -torch.rand(100)])
    def test_a_symmetric_quantizer_rounds_as_int8_with_zero_point_zero_does(self, values: Tensor) -> None:
        quantizer = ActivationQuantizer(grids="symmetric")
        quantizer.train()
        quantizer(values)
        quantizer.eval()
        grid, beyond = quantizer.range(), torch.cat([values, 2 * values])
        scale = float(values.abs().max()) / 127
        assert (grid.scale, grid.zero_point) == (pytest.approx(scale), 128)
        signed = torch.fake_quantize_per_tensor_affine(beyond, grid.scale, 0, -128, 127)
        assert torch.equal(quantizer(beyond), signed)

    def test_values_move_by_at_most_half_a_step(self) -> None:
        quantizer = ActivationQuantizer()
        values = torch.linspace(-1, 3, 1001)
        quantizer.train()
        quantizer(values)
        quantizer.eval()
        assert float((quantizer(values) - values).abs().max()) <= 0.5001 * quantizer.range().scale

    @pytest.mark.parametrize("bits", [7, 8])
    def test_weight_codes_stay_within_their_bits(self, bits: int) -> None:
        weight = torch.randn(5, 3, 3, 3)
        quantizer = WeightQuantizer(bits=7 if bits == 7 else 8)
        codes = quantizer(weight) / quantizer.scale.view(-1, 1, 1, 1)
        assert float(codes.abs().max()) == pytest.approx(2 ** (bits - 1) - 1)
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)

    def test_seven_bit_weights_cannot_saturate_sixteen_bit_sums(self) -> None:
        assert 2 * 255 * (2**6 - 1) < 2**15
        assert 2 * 255 * (2**7 - 1) > 2**15

    def test_gradients_pass_straight_through(self) -> None:
        quantizer = ActivationQuantizer()
        quantizer.set_range(ActivationRange(scale=0.1, zero_point=0))
        quantizer.eval()
        values = torch.tensor([0.52, 3.17, 99.0], requires_grad=True)
        quantizer(values).sum().backward()
        assert values.grad is not None
        assert values.grad.tolist() == [1.0, 1.0, 0.0]


class TestQuantize:
    def test_calibration_alone_keeps_the_accuracy(self, trained: Artifact, new_context: NewContext) -> None:
        context = new_context(Teacher(trained))
        quantized = Quantize.model_validate({"recover": {"epochs": 0}}).run(trained, context)
        before = metric_of(trained.model, context.data.test, context)
        after = metric_of(quantized.executable(context.data.example()), context.data.test, context)
        assert after >= before - 0.05

    def test_training_under_quantizers_changes_weights_and_grids_and_keeps_the_accuracy(
        self, trained: Artifact, new_context: NewContext
    ) -> None:
        context = new_context(Teacher(trained), step="qat")
        calibrated = Quantize.model_validate({"recover": {"epochs": 0}}).run(trained, context)
        distilled = Quantize.model_validate({"recover": {"epochs": 2}}).run(trained, context)
        assert distilled.quantization != calibrated.quantization
        assert not torch.equal(
            distilled.model.get_parameter("conv1.weight"), calibrated.model.get_parameter("conv1.weight")
        )
        assert metric_of(distilled.executable(context.data.example()), context.data.test, context) > 0.9

    def test_the_given_artifact_stays_as_it_was(self, trained: Artifact, new_context: NewContext) -> None:
        before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
        Quantize.model_validate({"recover": {"epochs": 1}}).run(trained, new_context(Teacher(trained)))
        assert trained.quantization is None
        assert before.keys() == trained.model.state_dict().keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in trained.model.state_dict().items())

    def test_a_quantized_artifact_survives_saving(
        self, trained: Artifact, new_context: NewContext, tmp_path: pytest.TempPathFactory
    ) -> None:
        context = new_context(Teacher(trained))
        example = context.data.example(8)
        quantized = Quantize.model_validate({"recover": {"epochs": 1}}).run(trained, context)
        folder = context.directory / "saved"
        quantized.save(folder, example)
        reloaded = Artifact.load(folder)
        assert reloaded.quantization == quantized.quantization
        with torch.no_grad():
            outputs = [each.executable(example)(*example.values()) for each in (quantized, reloaded)]
        assert torch.equal(outputs[0], outputs[1])

    def test_conversion_computes_what_the_fake_quantizers_do(self, trained: Artifact, new_context: NewContext) -> None:
        context = new_context(Teacher(trained))
        example = context.data.example(16)
        quantized = Quantize.model_validate({"recover": {"epochs": 0}}).run(trained, context)
        assert quantized.quantization is not None
        model = fake_quantized(quantized.model, quantized.quantization, example)
        with torch.no_grad():
            fake, real = model(*example.values()), converted(model, example)(*example.values())
        # The last activation's rounding can fall the other way where sums are ordered differently: one step at most.
        step = quantized.quantization.activations["linear:linear"].scale
        assert float((fake - real).abs().max()) <= 1.01 * step

    def test_biases_of_norms_that_are_no_more_have_no_rate(self, trained: Artifact, new_context: NewContext) -> None:
        stage = Quantize.model_validate({"recover": {"epochs": 1, "norm_bias_rate": 64}}).untrained()
        with pytest.raises(StageError, match=r"batch norms are parts of the convolutions.*leave it out of `recover`"):
            stage.run(trained, new_context(Teacher(trained)))

    def test_a_second_quantize_stage_is_refused(self) -> None:
        assert Quantize().order_problem([Train(epochs=1), Quantize()]) is not None
        assert Quantize().order_problem([Train(epochs=1)]) is None


class TestStoredWeights:
    STAGE = Quantize(scheme="int4_weights", recover=Recovery(epochs=1))

    def test_training_under_them_changes_the_weights_and_no_activation_is_rounded(
        self, wide: Artifact, new_context: NewContext
    ) -> None:
        context = new_context(teacher=Teacher(wide))
        quantized = self.STAGE.run(wide, context)
        assert quantized.quantization is not None
        assert quantized.quantization.weights == ("linear.weight",)
        assert quantized.quantization.activations == {}
        weights = (artifact.model.get_parameter("linear.weight") for artifact in (wide, quantized))
        assert not torch.equal(*weights)
        assert context.journal.facts["weight bits"] == "4, in groups of 32"

    def test_conversion_computes_what_the_fake_quantizers_do(self, wide: Artifact, new_context: NewContext) -> None:
        inputs = new_context().data.example()
        stage = Quantize(scheme="int4_weights", recover=Recovery(epochs=0))
        quantized = stage.run(wide, new_context(step="calibrated"))
        graph = quantized.executable(inputs)
        assert isinstance(graph, FakeQuantizedModel)
        with torch.no_grad():
            outputs = converted(graph, inputs)(*inputs.values())
            torch.testing.assert_close(outputs, graph(*inputs.values()))
            assert not torch.allclose(outputs, wide.model(*inputs.values()), atol=1e-4)

    def test_a_model_whose_layers_are_all_too_narrow_is_refused_and_they_are_named(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        narrow = new_artifact(width=4)
        with pytest.raises(
            StageError, match=r"none of this model's can be \(linear: its 16 inputs are fewer than a group"
        ):
            Quantize(scheme="int8_weights", group_size=128).run(narrow, new_context())

    def test_a_layer_that_is_in_float_on_purpose_is_none_of_them(self, wide: Artifact, new_context: NewContext) -> None:
        graph = capture(wide.model, new_context().data.example())
        asked = Quantization(scheme="int4_weights", weight_bits=4, group_size=32, weights=(), activations={})
        assert layer_paths(graph, asked) == ["linear"]
        assert layer_paths(graph, asked.model_copy(update={"float_layers": ("linear",)})) == []


class TestOrder:
    @pytest.mark.parametrize(
        ("stage", "why"),
        [
            (Train(epochs=1), "in float"),
            (Distill.model_validate({"student": {"from": "teacher"}, "epochs": 1}), "new student in float"),
        ],
    )
    def test_what_would_lose_the_quantization_cannot_follow_it(self, stage: Stage, why: str) -> None:
        problem = stage.order_problem([Train(epochs=1), Quantize()])
        assert problem is not None
        assert why in problem
        assert stage.order_problem([Train(epochs=1)]) is None

    @pytest.mark.parametrize(
        "stage",
        [
            Prune.model_validate({"keep": {"macs": 0.5}, "recover": {"teachers": ["assistant"]}}),
            Factorize.model_validate({"keep": {"energy": 0.5}, "recover": {"teachers": ["assistant"]}}),
            Quantize.model_validate({"recover": {"teachers": ["assistant"]}}),
        ],
    )
    def test_teachers_of_a_recovery_are_earlier_steps_that_it_needs(self, stage: Stage) -> None:
        assert list(stage.earlier_steps()) == [(("recover", "teachers", 0), "assistant")]


class TestTaps:
    def test_of_a_quantized_graph_read_what_the_modules_give_up_to_rounding(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context(Teacher(new_artifact()))
        quantized = Quantize.model_validate({"recover": {"epochs": 0}}).run(new_artifact(), context)
        assert quantized.quantization is not None
        inputs = context.data.example()
        model = fake_quantized(quantized.model, quantized.quantization, inputs)
        taps = ["layer1", "layer1.0.relu2", "layer2.0.relu1:input", "layer3", "linear:input"]
        model.mark(taps)
        with torch.no_grad():
            found, expected = outputs_of(model, inputs, taps), outputs_of(quantized.model, inputs, taps)
        assert set(found.maps) == set(taps)
        for tap in taps:
            step = (expected.maps[tap].max() - expected.maps[tap].min()) / 255
            assert float((found.maps[tap] - expected.maps[tap]).abs().max()) < 12 * float(step)

    def test_of_a_module_without_operators_are_refused(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context(Teacher(new_artifact()))
        quantized = Quantize.model_validate({"recover": {"epochs": 0}}).run(new_artifact(), context)
        assert quantized.quantization is not None
        model = fake_quantized(quantized.model, quantized.quantization, context.data.example())
        with pytest.raises(ModelError, match=r"no operator within `layer1\.0\.shortcut`"):
            model.mark(["layer1.0.shortcut"])

    def test_let_a_quantized_student_learn_from_maps(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context(Teacher(new_artifact(width=16)))
        stage = Quantize.model_validate({"recover": {"epochs": 1, "knowledge": ["kd", "hint"]}})
        quantized = stage.run(new_artifact(), context)
        assert set(context.journal.curve[0].terms) == {"task", "kd", "hint"}
        shares = context.journal.curve[0].gradient_shares
        assert shares is not None
        assert shares["hint"] > 0
        assert not any("mark" in name for name in quantized.model.state_dict())


class TestAccept:
    def test_a_quantization_that_does_not_pay_leaves_the_model_in_float(
        self, new_artifact: Callable[..., Artifact], new_context: Callable[..., Context]
    ) -> None:
        artifact, context = new_artifact(), new_context()
        (context.checkpoints / "accept.json").write_text(
            '{"ratio": 0.7, "low": 0.6, "high": 0.8, "verdict": "slower", "baseline_ms": 1, "candidate_ms": 1.4, '
            '"baseline_bytes": 100, "candidate_bytes": 30}'
        )
        assert Quantize(accept="faster", recover=Recovery(epochs=0)).run(artifact, context) is artifact
        assert "1 → 1.4 ms, 0.70x" in str(context.journal.facts["undone"])

    def test_an_int8_engine_is_smaller(
        self, new_artifact: Callable[..., Artifact], new_context: Callable[..., Context]
    ) -> None:
        context = new_context()
        stage = Quantize(accept="smaller", recover=Recovery(epochs=0), calibration=Calibration(samples=8))
        assert stage.run(new_artifact(width=32), context).quantization is not None
        assert "accepted" in context.journal.facts
