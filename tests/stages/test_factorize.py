"""Facts about factorization: the arithmetic, where it pays, and what comes back from disk."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.blueprint import Factorize as FactorizeEdit
from potstill.pipeline.cost import macs, macs_by_layer
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import StageError
from potstill.pipeline.factors import Factors
from potstill.pipeline.quantization import Calibration
from potstill.pipeline.teacher import Teacher
from potstill.stages.factorization.decomposition import (
    cheapest_tucker2_ranks,
    energies,
    rank_of_energy,
    rounded_up,
    spatial_factors,
    svd_factors,
    tucker2_energies,
    tucker2_factors,
)
from potstill.stages.factorization.variational import vbmf_rank
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.prune import Budget, Prune
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from tests.support.factorization import factors_of, planned
from tests.support.hearing import Hearing

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

NO_RECOVERY = Recovery(epochs=0)


def stage(energy: float, **settings: Any) -> Factorize:
    return Factorize(**{"keep": Keep(energy=energy), "round_to": 1, "recover": NO_RECOVERY} | settings)


def layer_facts(context: Context) -> dict[str, dict[str, Any]]:
    facts = cast(list[dict[str, Any]], context.journal.facts["layers"])
    return {fact["path"]: fact for fact in facts}


def kept_by_truncated_svd(kernel: Tensor, rank_in: int, rank_out: int) -> float:
    """The share of a kernel's squared norm within its leading left singular vectors of both modes."""
    left = torch.linalg.svd(kernel.flatten(1), full_matrices=False).U[:, :rank_out]
    right = torch.linalg.svd(kernel.transpose(0, 1).flatten(1), full_matrices=False).U[:, :rank_in]
    core = torch.einsum("oihw,or,is->rshw", kernel, left, right)
    return float(core.square().sum() / kernel.square().sum())


def low_rank(rows: int, columns: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, rank, generator=generator) for size in (rows, columns))
    return left @ right.T


@pytest.fixture
def compressible(new_artifact: NewArtifact) -> Artifact:
    """A ResNet-8 of width 16 whose kernels have Tucker rank 4 by 4, apart from the first layer's."""
    artifact = new_artifact(width=16)
    generator = torch.Generator().manual_seed(1)
    for path, layer in artifact.model.named_modules():
        if isinstance(layer, nn.Conv2d) and path != "conv1":
            out_channels, in_channels, height, width = layer.weight.shape
            core = torch.randn(4, 4, height, width, generator=generator)
            left, right = (torch.randn(size, 4, generator=generator) for size in (out_channels, in_channels))
            weight = torch.einsum("or,rshw,is->oihw", left, core, right)
            layer.weight.data.copy_(weight * layer.weight.norm() / weight.norm())
    return artifact


class TestRanks:
    def test_the_rank_is_the_smallest_whose_leading_energies_are_the_asked_share(self) -> None:
        energies = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0])
        assert rank_of_energy(energies, 0.5) == 1
        assert rank_of_energy(energies, 0.51) == 2
        assert rank_of_energy(energies, 0.75) == 2
        assert rank_of_energy(energies, 0.875) == 3
        assert rank_of_energy(energies, 1.0) == 5

    def test_a_weight_of_zeros_still_has_rank_one(self) -> None:
        assert rank_of_energy(energies(torch.zeros(4, 6)), 0.9) == 1
        assert cheapest_tucker2_ranks(tucker2_energies(torch.zeros(4, 6, 3, 3)), 0.9, 9) == (1, 1)

    def test_ranks_are_rounded_up_but_not_above_the_full_rank(self) -> None:
        assert rounded_up(9, 8, 64) == 16
        assert rounded_up(16, 8, 64) == 16
        assert rounded_up(9, 8, 12) == 12

    def test_the_rank_of_a_low_rank_matrix_is_found(self) -> None:
        assert rank_of_energy(energies(low_rank(20, 30, 5)), 1 - 1e-9) == 5

    def test_the_cheapest_pair_of_ranks_that_keeps_enough_is_chosen(self) -> None:
        kernel = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(8)).double()
        for share, positions in ((0.4, 1), (0.7, 1), (0.7, 4), (0.95, 4)):
            prices = {
                (r, s): (positions * 5 * r if r < 5 else 0) + r * s * 9 + (s * 6 if s < 6 else 0)
                for r in range(1, 6)
                for s in range(1, 7)
                if kept_by_truncated_svd(kernel, r, s) >= share
            }
            chosen = cheapest_tucker2_ranks(tucker2_energies(kernel), share, 9, input_positions=positions)
            assert prices[chosen] == min(prices.values())

    def test_two_modes_together_lose_no_more_than_was_allowed(self) -> None:
        kernel = torch.randn(12, 10, 3, 3, generator=torch.Generator().manual_seed(2)).double()
        for share in (0.5, 0.8, 0.95):
            ranks = cheapest_tucker2_ranks(tucker2_energies(kernel), share, 9)
            basis_in, basis_out, core = tucker2_factors(kernel, ranks)
            error = kernel - torch.einsum("or,rshw,is->oihw", basis_out, core, basis_in)
            assert error.square().sum() <= (1 - share) * kernel.square().sum()


class TestArithmetic:
    def test_the_svd_is_the_sum_of_the_leading_outer_products(self) -> None:
        weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)).double()
        first, second = svd_factors(weight, 2)
        left, values, right = torch.linalg.svd(weight)
        expected = torch.zeros(7, 5, dtype=torch.float64)
        for k in range(2):
            for row in range(7):
                for column in range(5):
                    expected[row, column] += values[k] * left[row, k] * right[k, column]
        torch.testing.assert_close(second @ first, expected)

    def test_the_singular_values_are_split_evenly(self) -> None:
        first, second = svd_factors(torch.randn(7, 5, generator=torch.Generator().manual_seed(3)), 3)
        torch.testing.assert_close(first.norm(dim=1), second.norm(dim=0))

    def test_the_tucker_core_is_the_kernel_in_the_coordinates_of_both_bases(self) -> None:
        kernel = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(4)).double()
        basis_in, basis_out, core = tucker2_factors(kernel, (2, 3))
        for r in range(3):
            for s in range(2):
                for y in range(2):
                    for x in range(2):
                        expected = 0.0
                        for o in range(4):
                            for i in range(3):
                                expected += float(kernel[o, i, y, x] * basis_out[o, r] * basis_in[i, s])
                        assert float(core[r, s, y, x]) == pytest.approx(expected, abs=1e-12)
        torch.testing.assert_close(basis_in.T @ basis_in, torch.eye(2, dtype=torch.float64))
        torch.testing.assert_close(basis_out.T @ basis_out, torch.eye(3, dtype=torch.float64))

    def test_orthogonal_iteration_is_no_worse_than_the_truncated_higher_order_svd(self) -> None:
        kernel = torch.randn(10, 8, 3, 3, generator=torch.Generator().manual_seed(5)).double()
        kept = tucker2_factors(kernel, (3, 4))[2].square().sum() / kernel.square().sum()
        assert kept >= kept_by_truncated_svd(kernel, 3, 4)


LAYERS = [
    pytest.param(nn.Linear(12, 9), (4, 12), (9,), id="linear"),
    pytest.param(nn.Conv2d(6, 9, 1, stride=2), (2, 6, 7, 7), (6,), id="1×1 with a stride"),
    pytest.param(nn.Conv2d(6, 9, 1, padding=1), (2, 6, 5, 5), (6,), id="1×1 with padding"),
    pytest.param(nn.Conv2d(6, 9, 3, stride=2, padding=1), (2, 6, 7, 7), (6, 9), id="3×3, both modes whole"),
    pytest.param(nn.Conv2d(6, 9, 3, padding=2, dilation=2, bias=False), (2, 6, 7, 7), (6, 9), id="dilated"),
    pytest.param(
        nn.Conv2d(6, 9, (3, 1), padding="same", padding_mode="reflect"), (2, 6, 7, 7), (6, 9), id="reflecting"
    ),
]


class TestVariationalBayes:
    @pytest.mark.parametrize(
        ("rows", "columns", "rank", "noise"), [(64, 64, 8, 0.1), (64, 576, 16, 0.5), (128, 32, 4, 1)]
    )
    def test_finds_the_rank_below_the_noise(self, rows: int, columns: int, rank: int, noise: float) -> None:
        draws = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))
        assert vbmf_rank(low_rank(rows, columns, rank) / rank**0.5 + noise * draws) == rank

    def test_of_noise_alone_one_rank_stays(self) -> None:
        assert vbmf_rank(torch.randn(96, 96, generator=torch.Generator().manual_seed(3))) == 1
        assert vbmf_rank(torch.zeros(8, 8)) == 1

    def test_without_noise_the_rank_is_that_of_the_matrix(self) -> None:
        assert vbmf_rank(low_rank(20, 30, 3)) == 3


class TestSpatial:
    SETTINGS: ClassVar[list[dict[str, Any]]] = [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 5), "padding": (1, 2), "stride": (2, 1), "bias": False},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2},
    ]

    @pytest.mark.parametrize("settings", SETTINGS, ids=str)
    def test_a_layer_of_full_rank_is_reproduced(self, settings: dict[str, Any]) -> None:
        layer = nn.Conv2d(4, 6, **settings).double()
        height, width = layer.kernel_size
        factors = factors_of(layer, Factors(kind="spatial", ranks=(min(4 * height, 6 * width),))).double()
        x = torch.randn(2, 4, 11, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(factors(x), layer(x), rtol=0, atol=1e-5)

    def test_is_the_nearest_kernel_of_its_rank(self) -> None:
        kernel = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(4)).double()
        vertical, horizontal = spatial_factors(kernel, 3)
        error = kernel - torch.einsum("rih,orw->oihw", vertical[..., 0], horizontal[:, :, 0])
        tail = torch.linalg.svdvals(kernel.permute(1, 2, 3, 0).reshape(12, 18))[3:]
        assert float(error.square().sum()) == pytest.approx(float(tail.square().sum()))

    def test_the_cheaper_kind_is_chosen_and_its_cost_is_as_planned(self) -> None:
        layer = nn.Conv2d(16, 16, 3, padding=1, stride=2, bias=False)
        draws = torch.Generator().manual_seed(5)
        vertical, horizontal = (torch.randn(*shape, generator=draws) for shape in ((2, 16, 3), (16, 2, 3)))
        with torch.no_grad():
            # Two ranks between the axes, six in each of the channels' modes.
            layer.weight.copy_(torch.einsum("rih,orw->oihw", vertical, horizontal))
        inputs = {"x": torch.zeros(1, 16, 8, 8)}
        (plan,) = planned(nn.Sequential(layer), inputs, 1 - 1e-6, 1, kinds=("tucker2", "spatial"))
        assert plan.factors.kind == "spatial"
        assert plan.factors.ranks == (2,)
        assert plan.after.macs == 4 * 8 * 2 * 16 * 3 + 4 * 4 * 16 * 2 * 3

    def test_comes_back_from_disk(
        self, compressible: Artifact, new_context: NewContext, data: Dataset, tmp_path: Path
    ) -> None:
        factorized = stage(0.6, kinds=("spatial",), round_to=4).run(compressible, new_context())
        (edit,) = factorized.blueprint.edits
        assert isinstance(edit, FactorizeEdit)
        assert {factors.kind for factors in edit.layers.values()} == {"spatial"}
        factorized.save(tmp_path, data.example())
        batch = data.example(4).values()
        with torch.no_grad():
            assert torch.equal(Artifact.load(tmp_path).model.eval()(*batch), factorized.model.eval()(*batch))


class TestKeep:
    @pytest.mark.parametrize("wrong", [{}, {"energy": 0.9, "macs": 0.5}])
    def test_is_exactly_one_rule(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValidationError, match="exactly one of `energy`, `macs`, `ratio` and `vbmf`"):
            Keep.model_validate(wrong)

    @pytest.mark.parametrize("share", [0.5, 0.7])
    def test_a_budget_is_met_from_just_below_and_by_one_energy(
        self, share: float, new_artifact: NewArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact, context = new_artifact(width=16), new_context()
        factorized = Factorize(keep=Keep(macs=share), round_to=1, recover=NO_RECOVERY).run(artifact, context)
        left = macs(factorized.model, data.example()) / macs(artifact.model, data.example())
        assert share - 0.05 < left <= share
        facts = layer_facts(context)
        kept = [fact["energy"] for path, fact in facts.items() if path.startswith("layer") and "conv" in path]
        assert max(kept) - min(kept) < 0.1  # ranks are whole numbers

    def test_a_budget_out_of_reach_says_what_can_be_reached(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        with pytest.raises(StageError, match=r"cannot get down to 1\.0% .* Mend: `keep: \{macs: 0\.\d+\}`"):
            Factorize(keep=Keep(macs=0.01), recover=NO_RECOVERY).run(new_artifact(width=16), new_context())

    def test_a_ratio_holds_for_every_layer(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context()
        Factorize(keep=Keep(ratio=0.5), round_to=1, recover=NO_RECOVERY).run(new_artifact(width=16), context)
        shares = {
            path: fact["macs_after"] / fact["macs_before"]
            for path, fact in layer_facts(context).items()
            if fact["decision"] == "factorized"
        }
        assert len(shares) >= 6
        assert max(shares.values()) <= 0.5
        assert min(share for path, share in shares.items() if path.startswith("layer")) > 0.3, shares

    def test_vbmf_finds_the_ranks_of_low_rank_kernels(self, compressible: Artifact, new_context: NewContext) -> None:
        context = new_context()
        Factorize(keep=Keep(vbmf=True), round_to=1, recover=NO_RECOVERY).run(compressible, context)
        assert layer_facts(context)["layer1.0.conv2"]["ranks"] == [4, 4]


class TestFactors:
    @pytest.mark.parametrize(("layer", "shape", "ranks"), LAYERS)
    def test_a_layer_of_full_rank_is_reproduced(
        self, layer: nn.Module, shape: Sequence[int], ranks: tuple[int, ...]
    ) -> None:
        inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(6))
        torch.testing.assert_close(self._factorized(layer, ranks)(inputs), layer(inputs), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("ranks", [(3, 9), (6, 4), (3, 4)])
    def test_a_kernel_of_low_rank_is_reproduced_by_as_many_factors_as_it_has_low_modes(
        self, ranks: tuple[int, int]
    ) -> None:
        layer = nn.Conv2d(6, 9, 3, stride=2, padding=1)
        generator = torch.Generator().manual_seed(7)
        core = torch.randn(ranks[1], ranks[0], 3, 3, generator=generator)
        left, right = (torch.randn(full, rank, generator=generator) for full, rank in ((9, ranks[1]), (6, ranks[0])))
        layer.weight.data.copy_(torch.einsum("or,rshw,is->oihw", left, core, right))
        factors = self._factorized(layer, ranks)
        assert len(factors) == 1 + (ranks[0] < 6) + (ranks[1] < 9)
        inputs = torch.randn(2, 6, 8, 8, generator=generator)
        torch.testing.assert_close(factors(inputs), layer(inputs), rtol=1e-3, atol=1e-3)

    def _factorized(self, layer: nn.Module, ranks: tuple[int, ...]) -> nn.Sequential:
        factors = Factors(kind="svd" if len(ranks) == 1 else "tucker2", ranks=ranks)
        return factors_of(layer, factors)


class TestWhereItPays:
    def test_macs_fall_by_what_the_facts_say(self, compressible: Artifact, new_context: NewContext) -> None:
        context = new_context()
        inputs = context.data.example()
        result = stage(0.999).run(compressible, context)
        facts = layer_facts(context)
        assert sum(fact["macs_before"] for fact in facts.values()) == macs(compressible.model, inputs)
        assert sum(fact["macs_after"] for fact in facts.values()) == macs(result.model, inputs)
        for fact in facts.values():
            if fact["decision"] == "factorized":
                assert fact["macs_after"] < fact["macs_before"]
            else:
                assert fact["macs_after"] == fact["macs_before"]
        assert facts["layer2.0.conv1"]["ranks"] == [4, 4]
        assert facts["layer2.0.conv1"]["decision"] == "factorized"

    def test_a_layer_that_would_cost_more_stays_whole(self, compressible: Artifact, new_context: NewContext) -> None:
        context = new_context()
        result = stage(0.999).run(compressible, context)
        assert layer_facts(context)["linear"]["decision"].startswith("kept")
        assert isinstance(result.model.get_submodule("linear"), nn.Linear)

    def test_a_stride_is_priced_at_the_resolution_each_factor_runs_at(self) -> None:
        model = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False))
        (plan,) = planned(model, {"x": torch.zeros(1, 8, 16, 16)}, 1e-6, 4, ())
        assert plan.factors.ranks == (4, 4)
        assert plan.before.macs == 8 * 8 * 8 * 16 * 9
        assert plan.after.macs == 16 * 16 * 8 * 4 + 8 * 8 * 4 * 4 * 9 + 8 * 8 * 4 * 16

    def test_a_layer_called_twice_counts_twice(self) -> None:
        layer = nn.Linear(32, 32)

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = layer

            def forward(self, x: Tensor) -> Tensor:
                return self.layer(self.layer(x))

        (plan,) = planned(Twice(), {"x": torch.zeros(2, 32)}, 1e-6, 8, ())
        assert (plan.before.macs, plan.after.macs) == (2 * 32 * 32, 2 * 2 * 32 * 8)

    def test_grouped_convolutions_are_no_candidates(self) -> None:
        model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3))
        assert [plan.path for plan in planned(model, {"x": torch.zeros(1, 8, 12, 12)}, 0.5, 1, ())] == ["2"]

    def test_layers_that_share_a_weight_stay_whole(self) -> None:
        model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
        model[1].weight = model[0].weight
        found = planned(model, {"x": torch.zeros(2, 32)}, 1e-6, 8, ())
        assert not any(plan.pays for plan in found)
        assert {plan.fact()["decision"] for plan in found} == {"kept: shares its weight with another layer"}

    def test_an_ignored_layer_stays_whole(self, compressible: Artifact, new_context: NewContext) -> None:
        context = new_context()
        result = stage(0.999, ignore=("layer2.*",)).run(compressible, context)
        edit = result.blueprint.edits[-1]
        assert isinstance(edit, FactorizeEdit)
        assert edit.layers
        assert not any(path.startswith("layer2.") for path in edit.layers)
        assert layer_facts(context)["layer2.0.conv1"]["decision"] == "kept: named in `ignore`"

    def test_a_pattern_that_matches_nothing_is_an_error(self, compressible: Artifact, new_context: NewContext) -> None:
        with pytest.raises(StageError, match=r"'lyer2\.\*' matches no module"):
            stage(0.999, ignore=("lyer2.*",)).run(compressible, new_context())

    def test_where_nothing_pays_the_artifact_goes_on_as_it_is_and_the_user_is_told(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact, progress = new_artifact(), Hearing()
        context = replace(new_context(), progress=progress)
        # Recovery would need a teacher, which this context has not.
        result = stage(1.0, recover=Recovery(epochs=1)).run(artifact, context)
        assert result is artifact
        assert "NOTHING FACTORIZED" in progress.said[0]
        assert str(context.journal.facts["changed nothing"]) in progress.said[0]
        assert context.journal.facts["factorized layers"] == f"0 of {len(layer_facts(context))}"

    def test_a_model_without_a_layer_of_its_kinds_is_an_error(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        with pytest.raises(StageError, match="no layer to factorize by svd, tucker2"):
            stage(0.5).run(replace(new_artifact(), model=model), new_context())

    def test_a_model_that_reaches_into_a_factorized_layer_is_an_error_that_names_the_mend(self) -> None:
        class Reaching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(32, 32)

            def forward(self, x: Tensor) -> Tensor:
                return self.layer(x) * self.layer.weight.norm()

        model, inputs = Reaching(), {"x": torch.zeros(2, 32)}
        with pytest.raises(StageError, match="`ignore`"):
            planned(model, inputs, 1e-6, 8, ())
        (plan,) = planned(model, inputs, 1e-6, 8, ("layer",))
        assert not plan.pays

    @pytest.mark.parametrize("energy", [0, 1.01, float("nan")])
    def test_an_energy_that_is_no_share_is_refused(self, energy: float) -> None:
        with pytest.raises(ValidationError):
            Keep(energy=energy)


class TestArtifacts:
    def test_a_factorized_artifact_comes_back_from_disk_bit_for_bit(
        self, compressible: Artifact, new_context: NewContext, tmp_path: Path
    ) -> None:
        context = new_context()
        inputs = context.data.example()
        result = stage(0.999).run(compressible, context)
        result.save(tmp_path / "artifact", inputs)
        loaded = Artifact.load(tmp_path / "artifact")
        assert torch.equal(loaded.model(*inputs.values()), result.model(*inputs.values()))
        assert macs_by_layer(loaded.model, inputs) == macs_by_layer(result.model, inputs)

    def test_the_blueprint_alone_rebuilds_the_structure(self, compressible: Artifact, new_context: NewContext) -> None:
        result = stage(0.999).run(compressible, new_context())
        rebuilt = Blueprint.model_validate_json(result.blueprint.model_dump_json()).build()
        assert {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} == {
            name: tensor.shape for name, tensor in result.model.state_dict().items()
        }

    def test_the_given_artifact_stays_as_it_is(self, compressible: Artifact, new_context: NewContext) -> None:
        before = {name: tensor.clone() for name, tensor in compressible.model.state_dict().items()}
        stage(0.5).run(compressible, new_context())
        after = compressible.model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    def test_low_rank_kernels_lose_nothing(self, compressible: Artifact, new_context: NewContext) -> None:
        context = new_context()
        inputs = context.data.example(8)
        result = stage(1 - 1e-9).run(compressible, context)
        assert result.blueprint.edits
        torch.testing.assert_close(
            result.model(*inputs.values()), compressible.model(*inputs.values()), rtol=1e-3, atol=1e-3
        )

    def test_two_runs_give_the_same_weights(self, compressible: Artifact, new_context: NewContext) -> None:
        first, second = (
            stage(0.9, recover=Recovery(epochs=1))
            .run(compressible, new_context(Teacher(compressible), step=f"run-{number}"))
            .model.state_dict()
            for number in range(2)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_the_rehearsal_trains_nothing(self) -> None:
        assert stage(0.9, recover=Recovery(epochs=3)).untrained().recover.epochs == 0


class TestOrders:
    @pytest.mark.parametrize("order", ["prune factorize quantize", "prune quantize factorize"])
    def test_an_artifact_of_several_stages_comes_back_from_disk(
        self, order: str, new_artifact: NewArtifact, new_context: NewContext, tmp_path: Path
    ) -> None:
        stages = {
            "prune": Prune(keep=Budget(macs=0.8), recover=NO_RECOVERY),
            "factorize": stage(0.5, round_to=8),
            "quantize": Quantize(recover=NO_RECOVERY, calibration=Calibration(samples=32)),
        }
        context = new_context()
        artifact, inputs = new_artifact(width=32), context.data.example()
        for name in order.split():
            before = macs(artifact.model, inputs)
            artifact = stages[name].run(artifact, context)
            assert name == "quantize" or macs(artifact.model, inputs) < before
        artifact.save(tmp_path / "artifact", inputs)
        loaded = Artifact.load(tmp_path / "artifact")
        layers = [path for path, layer in loaded.model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        assert "layer3.0.conv2.1" in layers
        assert loaded.quantization is not None
        assert set(loaded.quantization.weights) == {f"{path}.weight" for path in layers}
        assert loaded.blueprint == artifact.blueprint
        assert loaded.quantization == artifact.quantization
        assert torch.equal(loaded.model(*inputs.values()), artifact.model(*inputs.values()))
