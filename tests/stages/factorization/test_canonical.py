"""Facts about CP factors: what they reproduce, that they stay bounded, and where they are taken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Factorize as FactorizeEdit
from potstill.pipeline.cost import macs
from potstill.pipeline.errors import ArtifactError
from potstill.pipeline.factors import Factors, factored
from potstill.stages.factorization import canonical as module
from potstill.stages.factorization.canonical import canonical, sweeps_within
from potstill.stages.factorization.ranks import LayerRanks
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from tests.support.factorization import factors_of, planned

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def outer(out: Tensor, into: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    return torch.einsum("or,ir,hr,wr->oihw", out, into, vertical, horizontal)


def kernel_of_rank(rank: int, *shape: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    out, into, vertical, horizontal = (torch.randn(size, rank, generator=draws) for size in shape)
    return outer(out, into, vertical, horizontal)


def border_kernel() -> Tensor:
    """Of rank 3, but as near as one likes to kernels of rank 2 whose two components grow and cancel."""
    draws = torch.Generator().manual_seed(0)
    a, b, new_a, new_b = torch.randn(4, 6, generator=draws)
    h, w, new_h = torch.randn(3, 3, generator=draws)
    terms = [(new_a, b, h, w), (a, new_b, h, w), (a, b, new_h, w)]
    return sum((outer(*(vector[:, None] for vector in term)) for term in terms), torch.zeros(6, 6, 3, 3))


def cancelling(kernel: Tensor, columns: tuple[Tensor, ...]) -> float:
    components = torch.stack([each.norm(dim=0) for each in columns]).prod(0)
    return float(components.square().sum() / kernel.double().square().sum())


class TestFit:
    @pytest.mark.parametrize("rank", [1, 3, 5])
    def test_a_kernel_of_low_rank_is_reproduced(self, rank: int) -> None:
        kernel = kernel_of_rank(rank, 12, 8, 3, 3)
        fit = canonical(kernel, rank)
        assert fit is not None
        assert fit.energy > 1 - 1e-4
        torch.testing.assert_close(outer(*fit.columns).float(), kernel, rtol=0, atol=0.03 * float(kernel.abs().max()))

    def test_the_energy_is_that_of_the_sum_of_its_components(self) -> None:
        kernel = torch.randn(12, 8, 3, 3, generator=torch.Generator().manual_seed(1)).double()
        fit = canonical(kernel, 6)
        assert fit is not None
        error = (kernel - outer(*fit.columns)).square().sum() / kernel.square().sum()
        assert fit.energy == pytest.approx(1 - float(error))
        assert 0.2 < fit.energy < 0.9

    def test_the_columns_of_a_component_have_equal_norms(self) -> None:
        fit = canonical(torch.randn(12, 8, 3, 3, generator=torch.Generator().manual_seed(1)), 6)
        assert fit is not None
        for each in fit.columns[1:]:
            torch.testing.assert_close(each.norm(dim=0), fit.columns[0].norm(dim=0))

    def test_components_grow_and_cancel_where_there_is_no_nearest_kernel_unless_their_norms_count(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kernel = border_kernel()
        monkeypatch.setattr(module, "TOLERANCE", 0.0)

        def after(sweeps: int, ridge: float) -> float:
            monkeypatch.setattr(module, "RIDGES", (ridge,))
            monkeypatch.setattr(module, "MOST_SWEEPS", sweeps)
            fit = canonical(kernel, 2)
            assert fit is not None
            return cancelling(kernel, fit.columns)

        assert after(400, 1e-12) > 1.25 * after(100, 1e-12)
        assert after(400, 1e-3) < 1.05 * after(100, 1e-3)

    def test_components_that_cancel_are_fitted_anew_under_a_heavier_weight_or_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kernel = border_kernel()
        monkeypatch.setattr(module, "MOST_CANCELLING", 2.0)
        monkeypatch.setattr(module, "RIDGES", (1e-12, 1e-2))
        heavier = canonical(kernel, 2)
        assert heavier is not None
        assert cancelling(kernel, heavier.columns) <= 2
        monkeypatch.setattr(module, "RIDGES", (1e-12,))
        assert canonical(kernel, 2) is None

    def test_two_fits_are_the_same_bit_for_bit(self) -> None:
        kernel = torch.randn(12, 8, 3, 3, generator=torch.Generator().manual_seed(1))
        first, second = canonical(kernel, 16), canonical(kernel, 16)
        assert first is not None
        assert second is not None
        assert all(torch.equal(*pair) for pair in zip(first.columns, second.columns, strict=True))

    def test_a_kernel_of_zeros_has_factors_of_zeros(self) -> None:
        fit = canonical(torch.zeros(4, 4, 3, 3), 2)
        assert fit is not None
        assert fit.energy == 1
        assert not any(each.any() for each in fit.columns)

    def test_a_fit_of_a_huge_layer_gets_fewer_sweeps(self) -> None:
        assert sweeps_within((64, 64, 3, 3), 64) == 50
        assert 15 <= sweeps_within((512, 512, 3, 3), 256) < 50
        assert sweeps_within((2048, 2048, 3, 3), 512) < 15


class TestLayers:
    SETTINGS: ClassVar[list[dict[str, Any]]] = [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 5), "padding": (1, 2), "stride": (2, 1), "bias": False},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2},
        {"kernel_size": (3, 1), "padding": (1, 0), "stride": 2},
    ]

    @pytest.mark.parametrize("settings", SETTINGS, ids=str)
    def test_a_layer_of_low_rank_is_reproduced(self, settings: dict[str, Any]) -> None:
        layer = nn.Conv2d(8, 12, **settings)
        with torch.no_grad():
            layer.weight.copy_(kernel_of_rank(3, 12, 8, *layer.kernel_size))
        factors = factors_of(layer, Factors(kind="cp", ranks=(3,)))
        x = torch.randn(2, 8, 11, 12, generator=torch.Generator().manual_seed(0))
        expected = layer(x).detach()
        torch.testing.assert_close(factors(x), expected, rtol=0, atol=0.02 * float(expected.abs().max()))

    def test_are_a_pointwise_two_depthwise_and_a_pointwise_convolution(self) -> None:
        layer = nn.Conv2d(8, 12, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        before, down, across, after = factored(layer, Factors(kind="cp", ranks=(4,)), "layer")
        assert (down.groups, across.groups) == (4, 4)
        assert (down.kernel_size, down.stride, down.padding, down.dilation) == ((3, 1), (2, 1), (1, 0), (1, 1))
        assert (across.kernel_size, across.stride, across.padding, across.dilation) == ((1, 5), (1, 1), (0, 2), (1, 2))
        assert before.bias is None
        assert after.bias is not None

    def test_a_window_of_a_single_line_needs_one_depthwise_convolution(self) -> None:
        assert len(factored(nn.Conv2d(8, 12, (3, 1)), Factors(kind="cp", ranks=(4,)), "layer")) == 3

    @pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(8, 8, 3, groups=8)], ids=str)
    def test_are_for_ungrouped_convolutions_alone(self, layer: nn.Module) -> None:
        with pytest.raises(ArtifactError, match="by cp with ranks"):
            factored(layer, Factors(kind="cp", ranks=(4,)), "layer")


class TestRanks:
    def _ranks(self, round_to: int = 4) -> LayerRanks:
        layer = nn.Conv2d(16, 16, 3)
        with torch.no_grad():
            layer.weight.copy_(kernel_of_rank(10, 16, 16, 3, 3))
        return LayerRanks(layer, ("cp",), round_to)

    def test_the_smallest_rank_of_the_grid_that_keeps_the_energy_is_found(self) -> None:
        layer = self._ranks()
        found = layer.of_energy(0.9)
        assert found is not None
        kept = {rank: layer.energy(Factors(kind="cp", ranks=(rank,))) for rank in (found.ranks[0] - 4, found.ranks[0])}
        assert found.ranks[0] in (8, 12)
        assert kept[found.ranks[0]] >= 0.9 > kept[found.ranks[0] - 4]

    def test_energy_that_no_paying_rank_keeps_gives_no_factors(self) -> None:
        layer = nn.Conv2d(16, 16, 3)
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
        assert LayerRanks(layer, ("cp",), 4).of_energy(1 - 1e-9) is None
        both = LayerRanks(layer, ("cp", "tucker2"), 4).of_energy(1 - 1e-9)
        assert both is not None
        assert both.kind == "tucker2"

    def test_a_rank_is_fitted_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fitted: list[int] = []

        def counted(kernel: Tensor, rank: int) -> Any:
            fitted.append(rank)
            return canonical(kernel, rank)

        monkeypatch.setattr("potstill.stages.factorization.splits.canonical", counted)
        layer = self._ranks(round_to=1)
        for energy in (0.5, 0.9, 0.95, 0.9):
            factors = layer.of_energy(energy)
            assert factors is not None
            layer.built(factors, "layer")
        assert len(fitted) == len(set(fitted)) <= 12

    def test_by_noise_it_keeps_as_much_as_tucker2_does(self) -> None:
        layer = nn.Conv2d(32, 32, 3)
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            signal = kernel_of_rank(4, 32, 32, 3, 3)
            noise = torch.randn(signal.shape, generator=draws)
            layer.weight.copy_(signal / signal.std() + 0.1 * noise)
        (cp, tucker2) = (LayerRanks(layer, (kind,), 1) for kind in ("cp", "tucker2"))
        found, others = cp.of_noise(), tucker2.of_noise()
        assert others is not None
        assert others.ranks == (4, 4)
        assert found is not None
        assert cp.energy(found) >= tucker2.energy(others)
        assert found.ranks[0] < 32

    def test_a_layer_without_stable_or_paying_factors_stays_whole_and_says_so(self) -> None:
        model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
        (plan,) = planned(model, {"x": torch.zeros(1, 8, 8, 8)}, 0.9999, 8, kinds=("cp",))
        assert not plan.pays
        assert plan.fact()["decision"] == "kept: no cp factors of lower cost keep so much"
        assert "ranks" not in plan.fact()


class TestStage:
    @pytest.fixture
    def artifact(self, new_artifact: NewArtifact) -> Artifact:
        """A ResNet-8 whose kernels after the first have rank 6."""
        artifact = new_artifact(width=16)
        for path, layer in artifact.model.named_modules():
            if isinstance(layer, nn.Conv2d) and path != "conv1":
                kernel = kernel_of_rank(6, *layer.weight.shape, seed=len(path))
                layer.weight.data.copy_(kernel * layer.weight.norm() / kernel.norm())
        return artifact

    def test_comes_back_from_disk_bit_for_bit(
        self, artifact: Artifact, new_context: NewContext, tmp_path: Path
    ) -> None:
        context = new_context()
        stage = Factorize(keep=Keep(energy=0.98), kinds=("cp",), round_to=2, recover=Recovery(epochs=0))
        factorized = stage.run(artifact, context)
        (edit,) = factorized.blueprint.edits
        assert isinstance(edit, FactorizeEdit)
        assert len(edit.layers) >= 5
        assert {factors.kind for factors in edit.layers.values()} == {"cp"}
        facts = cast(list[dict[str, Any]], context.journal.facts["layers"])
        assert all(fact["energy"] >= 0.98 for fact in facts if fact["decision"] == "factorized")
        inputs = context.data.example(4)
        saved = macs(artifact.model, inputs) - macs(factorized.model, inputs)
        assert sum(fact["macs_before"] - fact["macs_after"] for fact in facts) == saved > 0
        factorized.save(tmp_path, inputs)
        with torch.no_grad():
            reloaded = Artifact.load(tmp_path).model(*inputs.values())
            assert torch.equal(reloaded, factorized.model(*inputs.values()))

    @pytest.mark.parametrize("share", [0.4, 0.7])
    def test_a_budget_is_met(self, share: float, artifact: Artifact, new_context: NewContext) -> None:
        context = new_context()
        stage = Factorize(keep=Keep(macs=share), kinds=("cp",), round_to=1, recover=Recovery(epochs=0))
        factorized = stage.run(artifact, context)
        inputs = context.data.example()
        assert macs(factorized.model, inputs) <= share * macs(artifact.model, inputs)

    def test_a_step_that_goes_on_keeps_the_ranks_it_had_found(
        self, artifact: Artifact, new_context: NewContext
    ) -> None:
        context = new_context()
        stage = Factorize(keep=Keep(energy=0.98), kinds=("cp",), round_to=2, recover=Recovery(epochs=0))
        stage.run(artifact, context)
        kept = context.checkpoints / "ranks.json"
        kept.write_text(
            kept.read_text().replace('"layer1.0.conv1": {"kind": "cp", "ranks": [6]}', '"layer1.0.conv1": null')
        )
        (edit,) = stage.run(artifact, context).blueprint.edits
        assert isinstance(edit, FactorizeEdit)
        assert "layer1.0.conv1" not in edit.layers
        assert "layer1.0.conv2" in edit.layers
