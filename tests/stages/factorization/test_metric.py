"""Facts about factors in the metric of a layer's output: they lose less of it, and their energy is its share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.factors import Factors
from potstill.stages.factorization import metric as module
from potstill.stages.factorization.candidates import candidates
from potstill.stages.factorization.metric import Metric, metrics
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.judgement import sampled
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from tests.support.factorization import factors_of

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def correlated(count: int, size: int) -> Tensor:
    """Vectors of which a few directions hold nearly all."""
    draws = torch.Generator().manual_seed(0)
    directions = torch.randn(size, size, generator=draws) * torch.logspace(0, -2, size)[:, None]
    return torch.randn(count, size, generator=draws) @ directions


def moment(vectors: Tensor) -> Tensor:
    vectors = vectors.double()
    return vectors.T @ vectors / len(vectors)


def maps() -> Tensor:
    """(4, 12, 8, 8), whose channels go together."""
    return correlated(4 * 64, 12).reshape(4, 8, 8, 12).movedim(-1, 1).contiguous()


def seeded(layer: nn.Module) -> nn.Module:
    draws = torch.Generator().manual_seed(3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3, generator=draws)
    return layer


CASES = [
    pytest.param(nn.Linear(12, 9), Factors(kind="svd", ranks=(3,)), id="linear"),
    pytest.param(nn.Conv2d(12, 9, 1), Factors(kind="svd", ranks=(3,)), id="1×1"),
    pytest.param(nn.Conv2d(12, 9, 3, padding=1), Factors(kind="tucker2", ranks=(3, 9)), id="tucker2 of the inputs"),
    pytest.param(nn.Conv2d(12, 9, 3, padding=1), Factors(kind="tucker2", ranks=(12, 3)), id="tucker2 of the outputs"),
    pytest.param(nn.Conv2d(12, 9, 3, padding=1), Factors(kind="spatial", ranks=(6,)), id="spatial"),
    pytest.param(nn.Conv2d(12, 9, 3, padding=1), Factors(kind="cp", ranks=(6,)), id="cp"),
]


class TestMetric:
    @pytest.mark.parametrize(("layer", "factors"), CASES)
    def test_the_error_of_the_output_is_lower_at_equal_rank(self, layer: nn.Module, factors: Factors) -> None:
        layer = seeded(layer)
        inputs = correlated(256, 12) if isinstance(layer, nn.Linear) else maps()
        vectors = inputs if inputs.ndim == 2 else inputs.movedim(1, -1).flatten(0, -2)

        def error(metric: Metric | None) -> float:
            with torch.no_grad():
                return float((factors_of(layer, factors, metric)(inputs) - layer(inputs)).square().mean())

        assert error(Metric.of_moment(moment(vectors))) < 0.8 * error(None)

    def test_the_energy_is_the_share_of_the_outputs_square_that_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "DAMPING", 1e-9)
        layer, inputs = seeded(nn.Linear(12, 9, bias=False)), correlated(256, 12)
        (ranks,) = candidates(nn.Sequential(layer), {"x": inputs}, ("svd",), 1).values()
        whitened = ranks.in_metric(Metric.of_moment(moment(inputs)))
        factors = Factors(kind="svd", ranks=(2,))
        with torch.no_grad():
            lost = (whitened.built(factors, "0")(inputs) - layer(inputs)).square().sum() / layer(inputs).square().sum()
        assert whitened.energy(factors) == pytest.approx(1 - float(lost), abs=1e-5)
        assert whitened.energy(factors) > ranks.energy(factors) + 0.1

    def test_inputs_that_are_alike_give_the_factors_of_the_weight(self) -> None:
        layer, factors = seeded(nn.Linear(12, 9)), Factors(kind="svd", ranks=(3,))
        x = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
        alike = factors_of(layer, factors, Metric.of_moment(2 * torch.eye(12, dtype=torch.float64)))
        torch.testing.assert_close(alike(x), factors_of(layer, factors)(x), rtol=0, atol=1e-5)

    def test_inputs_that_are_always_zero_are_no_obstacle(self) -> None:
        layer, factors = seeded(nn.Linear(12, 9)), Factors(kind="svd", ranks=(9,))
        inputs = correlated(256, 12)
        inputs[:, :5] = 0
        found = factors_of(layer, factors, Metric.of_moment(moment(inputs)))
        torch.testing.assert_close(found(inputs), layer(inputs), rtol=0, atol=1e-4)
        nothing = factors_of(layer, factors, Metric.of_moment(torch.zeros(12, 12, dtype=torch.float64)))
        torch.testing.assert_close(nothing(inputs), layer(inputs), rtol=0, atol=1e-4)

    def test_each_inputs_square_alone_already_helps(self) -> None:
        layer, factors = seeded(nn.Linear(12, 9)), Factors(kind="svd", ranks=(3,))
        inputs = torch.randn(256, 12, generator=torch.Generator().manual_seed(2)) * torch.logspace(0, -2, 12)

        def error(metric: Metric | None) -> float:
            with torch.no_grad():
                return float((factors_of(layer, factors, metric)(inputs) - layer(inputs)).square().mean())

        assert error(Metric.of_moment(inputs.double().square().mean(0))) < 0.7 * error(None)


class TestMoments:
    def test_are_those_of_what_the_layer_read(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context, model = new_context(), new_artifact().model
        path = "layer2.0.shortcut.0"
        layer = model.get_submodule(path)
        assert isinstance(layer, nn.Conv2d)
        assert (layer.kernel_size, layer.stride) == ((1, 1), (2, 2))
        read: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        with torch.no_grad():
            for batch in sampled(context, module.SAMPLES, 32, "test"):
                model(*batch.inputs.values())
        hook.remove()
        # A stride of 2 reads every other position.
        vectors = torch.cat(read)[..., ::2, ::2].movedim(1, -1).flatten(0, -2)
        (found,) = metrics(model, [path], context).values()
        expected = Metric.of_moment(moment(vectors))
        torch.testing.assert_close(found.root @ found.root.T, expected.root @ expected.root.T)

    def test_are_of_what_was_given_by_keyword_too(self, new_context: NewContext) -> None:
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(16, 4)

            def forward(self, image: Tensor) -> Tensor:
                return self.linear(input=image.mean((1, 2)))

        found = metrics(Named(), ["linear"], new_context())
        assert found["linear"].root.shape == (16, 16)

    def test_leave_the_model_without_hooks(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        model = new_artifact().model
        metrics(model, ["linear"], new_context())
        assert not model.get_submodule("linear")._forward_pre_hooks

    def test_of_wide_layers_are_squares_alone_and_said(
        self, new_artifact: NewArtifact, new_context: NewContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "WIDEST", 16)
        context = new_context()
        found = metrics(new_artifact().model, ["layer3.0.conv2", "layer1.0.conv1"], context)
        assert found["layer3.0.conv2"].root.shape == (32,)
        assert found["layer1.0.conv1"].root.shape == (8, 8)
        assert context.journal.facts["each input taken by itself"] == ["layer3.0.conv2"]


class TestStage:
    def test_the_output_of_the_model_is_nearer_at_equal_ranks(
        self, new_artifact: NewArtifact, new_context: NewContext, tmp_path: Path
    ) -> None:
        artifact = new_artifact(width=16)
        batch = next(iter(sampled(new_context(), 128, 128, "test")))

        def ran(metric: Any) -> tuple[Artifact, float]:
            stage = Factorize(
                keep=Keep(ratio=0.4), metric=metric, kinds=("tucker2",), round_to=4, recover=Recovery(epochs=0)
            )
            factorized = stage.run(artifact, new_context(step=metric))
            with torch.no_grad():
                ours, theirs = (each.model(*batch.inputs.values()) for each in (factorized, artifact))
            return factorized, float((ours - theirs).square().mean())

        _, by_weights = ran("weights")
        factorized, by_outputs = ran("outputs")
        assert by_outputs < by_weights
        inputs = new_context().data.example(4)
        factorized.save(tmp_path / "artifact", inputs)
        with torch.no_grad():
            reloaded = Artifact.load(tmp_path / "artifact").model(*inputs.values())
            assert torch.equal(reloaded, factorized.model(*inputs.values()))

    def test_noise_in_the_weights_is_not_looked_for_in_the_metric_of_outputs(self) -> None:
        with pytest.raises(ValidationError, match="noise of equal strength in the weights"):
            Factorize(keep=Keep(vbmf=True), metric="outputs")

    def test_the_rehearsal_runs_no_samples(self) -> None:
        assert Factorize(keep=Keep(energy=0.9), metric="outputs").untrained().metric == "weights"

    def test_the_facts_say_in_which_metric_energies_are(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        Factorize(keep=Keep(energy=0.9), metric="outputs", recover=Recovery(epochs=0)).run(new_artifact(), context)
        assert context.journal.facts["energy of"] == "outputs"
        facts = cast(list[dict[str, Any]], context.journal.facts["layers"])
        assert all(fact["energy"] >= 0.9 - 1e-9 for fact in facts)
