"""Facts about bias correction: the mean error of every channel goes, whether or not the layer had a bias."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import AddBias
from potstill.pipeline.errors import ArtifactError
from potstill.pipeline.fake_quantization import fake_quantized
from potstill.pipeline.quantization import Calibration, Quantization, operator_name
from potstill.stages.quantization.bias_correction import bias_corrected, with_biases
from potstill.stages.quantization.calibration import calibrated
from potstill.stages.quantize import Quantize
from potstill.stages.stage import Context

ASKED = Quantization(weight_bits=7, weights=(), activations={}, calibration=Calibration(samples=32))


class Layers(fx.Interpreter):
    """Keeps the mean of each channel of what every layer gives."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.means: list[Tensor] = []

    def run_node(self, n: fx.Node) -> object:
        output = super().run_node(n)
        if operator_name(n) in ("conv2d", "linear"):
            self.means.append(output.mean([axis for axis in range(output.ndim) if axis != 1]))
        return output


def means_of(artifact: Artifact, context: Context, *, rounding: bool) -> list[Tensor]:
    """On the one batch that the calibration draws."""
    from potstill.stages.quantization.calibration import samples

    assert artifact.quantization is not None
    (batch,) = samples(artifact.quantization, context)
    graph = fake_quantized(artifact.model, artifact.quantization, context.data.example())
    with torch.no_grad(), graph.rounding(on=rounding):
        layers = Layers(graph.graph)
        layers.run(*batch.inputs.values())
    return layers.means


def without_norms(artifact: Artifact) -> Artifact:
    """The network with no batch norms, so that its convolutions have no biases."""
    return replace(artifact, model=nn.Sequential(
        *(nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4, bias=False)),
    ))  # fmt: skip


@pytest.fixture
def corrected(
    new_artifact: Callable[..., Artifact], new_context: Callable[..., Context]
) -> tuple[Artifact, Artifact, Context]:
    """A calibrated network of three layers, two of them without biases, and what the correction makes of it."""
    torch.manual_seed(0)
    context = new_context()
    bare = without_norms(new_artifact())
    calm = replace(bare, quantization=calibrated(bare.model, ASKED, context))
    return calm, bias_corrected(calm, context), context


def test_the_mean_error_of_every_channel_of_every_layer_goes(corrected: tuple[Artifact, Artifact, Context]) -> None:
    before, after, context = corrected
    floats = means_of(before, context, rounding=False)
    for exact, plain, mended in zip(
        floats, means_of(before, context, rounding=True), means_of(after, context, rounding=True), strict=True
    ):
        assert float((mended - exact).abs().max()) < 1e-6
        assert float((plain - exact).abs().max()) > 1e-5


def test_layers_without_a_bias_get_one_and_the_blueprint_says_so(corrected: tuple[Artifact, Artifact, Context]) -> None:
    before, after, _ = corrected
    assert after.blueprint.edits == (AddBias(layers=("0", "6")),)
    assert before.model.get_submodule("0").bias is None
    assert after.model.get_parameter("0.bias").shape == (6,)
    assert after.quantization == before.quantization  # the grids stay those that the errors were measured on


def test_a_layer_that_runs_twice_is_left_alone_and_named(
    new_artifact: Callable[..., Artifact], new_context: Callable[..., Context]
) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.head = nn.Conv2d(1, 1, 3), nn.Linear(144, 4)

        def forward(self, image: Tensor) -> Tensor:
            return self.head(self.again(self.again(image)).flatten(1))

    model, context = Twice(), new_context()
    artifact = replace(new_artifact(), model=model, quantization=calibrated(model, ASKED, context))
    after = bias_corrected(artifact, context)
    assert context.journal.facts["biases not corrected"] == {"again": "it runs more than once"}
    assert torch.equal(after.model.get_parameter("again.bias"), model.get_parameter("again.bias"))
    assert not torch.equal(after.model.get_parameter("head.bias"), model.get_parameter("head.bias"))


def test_a_corrected_network_survives_saving(
    new_artifact: Callable[..., Artifact], new_context: Callable[..., Context]
) -> None:
    context = new_context()
    stage = Quantize.model_validate({"bias_correction": True, "recover": {"epochs": 0}})
    quantized = stage.run(new_artifact(), context)
    quantized.save(context.directory / "saved", context.data.example())
    reloaded = Artifact.load(context.directory / "saved")
    assert torch.equal(reloaded.model.get_parameter("conv1.bias"), quantized.model.get_parameter("conv1.bias"))


def test_an_artifact_whose_layers_all_have_biases_gains_no_edit(new_artifact: Callable[..., Artifact]) -> None:
    artifact = new_artifact()
    assert with_biases(artifact, ["linear"]) is artifact


def test_only_layers_can_be_given_a_bias() -> None:
    with pytest.raises(ArtifactError, match="gives `0`, a ReLU, a bias: only convolutions and linear layers"):
        AddBias(layers=("0",)).apply(nn.Sequential(nn.ReLU()))
