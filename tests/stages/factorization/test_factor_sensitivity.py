"""Facts about ranks by measured sensitivity: they meet the budget for the least rise of the loss, decided once."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import pytest
from pydantic import TypeAdapter, ValidationError
from torch import nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Factorize as FactorizeEdit
from potstill.pipeline.cost import macs
from potstill.pipeline.errors import StageError
from potstill.pipeline.factors import Factors
from potstill.stages.factorization.ranks import LayerRanks
from potstill.stages.factorization.sensitivity import FactorSensitivity, most_saved, of_least_rise
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.judgement import SAMPLES, judged, sampled
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from potstill.stages.train import Train

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

LAYERS = {name: LayerRanks(nn.Linear(4, 4), ("svd",), 1) for name in ("first", "second", "third")}


def row(layer: str, rank: int, macs_saved: int, loss_rise: float) -> FactorSensitivity:
    return FactorSensitivity(
        layer=layer,
        kind="svd",
        ranks=(rank,),
        macs_saved=macs_saved,
        loss_rise=loss_rise,
        metric=0.5,
    )


def ranks_for(measured: list[FactorSensitivity], to_save: float) -> dict[str, int | None] | None:
    choice = of_least_rise(measured, LAYERS, to_save)
    return choice and {path: factors.ranks[0] if factors else None for path, factors in choice.items()}


def stage(share: float, **settings: Any) -> Factorize:
    usual: dict[str, Any] = {"keep": Keep(macs=share), "by": "sensitivity", "round_to": 2}
    return Factorize(**(usual | {"recover": Recovery(epochs=0)} | settings))


def measured_before(context: Context) -> list[FactorSensitivity]:
    """Put down a table as if it had been measured before a kill: the first of two layers costs nothing."""
    rows = [
        FactorSensitivity(
            layer=layer,
            kind="tucker2",
            ranks=(2, 2),
            macs_saved=100_000,
            loss_rise=loss_rise,
            metric=0.5,
        )
        for layer, loss_rise in (("layer1.0.conv1", 0.0), ("layer1.0.conv2", 0.5))
    ]
    file = context.checkpoints / "sensitivity.json"
    file.write_bytes(TypeAdapter(list[FactorSensitivity]).dump_json(rows))
    return rows


class TestChoice:
    MEASURED = [  # noqa: RUF012 - nothing changes it
        row("first", 3, 100, 0.01),
        row("first", 1, 300, 0.5),
        row("second", 3, 100, 0.2),
        row("second", 1, 300, 0.3),
    ]

    def test_the_layer_that_costs_least_for_what_it_saves_goes_first(self) -> None:
        assert ranks_for(self.MEASURED, 100) == {"first": 3, "second": None, "third": None}

    def test_a_layer_may_go_to_its_lowest_rank_at_once(self) -> None:
        # 0.1 for each hundred, where the first layer's next two hundred would be 0.245 for each.
        assert ranks_for(self.MEASURED, 400) == {"first": 3, "second": 1, "third": None}

    def test_what_is_saved_beyond_the_budget_is_worth_nothing(self) -> None:
        # For the last hundred, the second layer's 0.2 is less than its 0.3 for three hundred.
        assert ranks_for(self.MEASURED, 200) == {"first": 3, "second": 3, "third": None}

    def test_everything_that_can_go_goes_where_it_has_to(self) -> None:
        assert ranks_for(self.MEASURED, 600) == {"first": 1, "second": 1, "third": None}
        assert ranks_for(self.MEASURED, 601) is None
        assert most_saved(self.MEASURED) == 600

    def test_factors_that_help_come_before_those_that_cost_nothing(self) -> None:
        helping = row("third", 1, 1000, -0.1)
        assert ranks_for([row("first", 3, 1000, 0.0), helping], 500) == {"first": None, "second": None, "third": 1}


class TestStage:
    @pytest.fixture
    def trained(self, new_artifact: NewArtifact, new_context: NewContext) -> Artifact:
        """A network that has learnt the four bars."""
        return Train(epochs=4).run(new_artifact(), new_context(step="00-train"))

    def test_the_budget_is_met_and_the_table_is_a_fact(self, trained: Artifact, new_context: NewContext) -> None:
        context = new_context()
        factorized = stage(0.7, ignore=("layer2.*",)).run(trained, context)
        inputs = context.data.example()
        assert 0.55 < macs(factorized.model, inputs) / macs(trained.model, inputs) <= 0.7
        told = cast(list[dict[str, Any]], context.journal.facts["sensitivity"])
        assert {each["layer"] for each in told} >= {"layer1.0.conv1", "layer3.0.conv2"}
        assert all(each["macs_saved"] > 0 and 0 <= each["accuracy"] <= 1 for each in told)
        by_layer = [each["ranks"] for each in told if each["layer"] == "layer3.0.conv1"]
        assert len(by_layer) >= 4
        assert not any(each["layer"].startswith("layer2.") for each in told)
        decisions = {fact["path"]: fact for fact in cast(list[dict[str, Any]], context.journal.facts["layers"])}
        taken = [(fact["path"], fact["ranks"]) for fact in decisions.values() if fact["decision"] == "factorized"]
        assert taken
        assert all(pair in [(each["layer"], each["ranks"]) for each in told] for pair in taken)
        kept = {fact["decision"] for fact in decisions.values() if fact["decision"] != "factorized"}
        assert kept == {"kept: other layers save enough, and raise the loss less", "kept: named in `ignore`"}
        worst = max(told, key=lambda each: each["loss_rise"])
        factors = Factors(kind=worst["kind"], ranks=tuple(worst["ranks"]))
        layer = LayerRanks(trained.model.get_submodule(worst["layer"]), (factors.kind,), 1)
        samples = list(sampled(context, SAMPLES, 32, "test"))
        whole = judged(trained.model, samples, context).loss
        alone = deepcopy(trained.model)
        alone.set_submodule(worst["layer"], layer.built(factors, worst["layer"]))
        assert worst["loss_rise"] == pytest.approx(judged(alone, samples, context).loss - whole, abs=1e-5)

    def test_the_loss_rises_less_than_by_equal_energy(self, trained: Artifact, new_context: NewContext) -> None:
        context = new_context()
        samples = list(sampled(context, SAMPLES, 32, "test"))

        def loss(by: str) -> float:
            factorized = stage(0.5, by=by).run(trained, new_context(step=by))
            return judged(factorized.model, samples, context).loss

        assert loss("sensitivity") < loss("energy")

    def test_a_step_that_goes_on_keeps_what_it_had_measured(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        rows = measured_before(context)
        (edit,) = stage(0.95).run(new_artifact(), context).blueprint.edits
        assert isinstance(edit, FactorizeEdit)
        assert edit.layers == {"layer1.0.conv1": Factors(kind="tucker2", ranks=(2, 2))}
        told = cast(list[dict[str, Any]], context.journal.facts["sensitivity"])
        assert [each["loss_rise"] for each in told] == [each.loss_rise for each in rows]

    def test_it_works_in_the_metric_of_outputs_and_with_every_kind(
        self, trained: Artifact, new_context: NewContext
    ) -> None:
        context = new_context()
        factorized = stage(0.6, metric="outputs", kinds=("svd", "tucker2", "spatial", "cp"), round_to=4).run(
            trained, context
        )
        inputs = context.data.example()
        assert macs(factorized.model, inputs) <= 0.6 * macs(trained.model, inputs)

    def test_a_budget_out_of_reach_says_what_can_be_reached(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        measured_before(context)
        with pytest.raises(StageError, match=r"cannot get down to 1\.0% .* Mend: `keep: \{macs: 0\.\d+\}`"):
            stage(0.01).run(new_artifact(), context)

    def test_is_for_a_budget_of_multiply_accumulates_alone(self) -> None:
        with pytest.raises(ValidationError, match=r"`by: sensitivity` shares out a budget .* `keep: \{energy: 0.9\}`"):
            Factorize(keep=Keep(energy=0.9), by="sensitivity")

    def test_the_rehearsal_measures_nothing(self) -> None:
        assert stage(0.5).untrained().by == "energy"
