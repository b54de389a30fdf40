"""Facts about a budget of latency and about `accept`: engines are built and timed, and decisions survive a kill."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.bench import Beside
from potstill.pipeline.blueprint import Resize
from potstill.pipeline.errors import StageError
from potstill.pipeline.quantization import Calibration
from potstill.stages.acceptance import accepted
from potstill.stages.prune import Budget, Prune
from potstill.stages.pruning.latency import Cuts, Decision, Removed, Trial, decide
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from tests.support.hearing import Hearing

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

UNTRAINED = Recovery(epochs=0)


def a_decision(removed: Removed, share: float) -> Decision:
    trial = Trial(blocks_removed=len(removed), predicted=share, share=share, p50_ms=share, uncut_p50_ms=1.0)
    return Decision(removed=removed, measured=trial, trials=(trial,))


def resumed(context: Context, decision: Decision, step: int = 1) -> None:
    """As if the step had been killed after it decided; its table of layers is empty."""
    (context.checkpoints / f"layer-times-{step}.json").write_text("[]")
    (context.checkpoints / f"latency-{step}.json").write_text(decision.model_dump_json())


def best_share(trials: Sequence[Trial], asked: float) -> float:
    return max(trial.share for trial in trials if trial.share <= asked)


def beside(share: float, **changes: Any) -> Beside:
    """Measured values as a bench gives them, for the arithmetic alone."""
    values: dict[str, Any] = {
        "ratio": 1 / share,
        "low": 1 / share,
        "high": 1 / share,
        "verdict": "faster",
        "baseline_ms": 1.0,
        "candidate_ms": share,
        "baseline_bytes": 100,
        "candidate_bytes": 100,
    }
    return Beside(**(values | changes))


def cuts(kinds: Sequence[str], saves: Sequence[float]) -> Cuts:
    """Pieces whose removal saves so much of 1 ms, as the table says and as the engine takes it."""

    def no_engine(_: Removed) -> Artifact:
        raise AssertionError

    def saved(removed: Removed) -> float:
        return sum(saves[place] for place in removed)

    return Cuts(kinds=kinds, after=no_engine, saved_ms=saved)


def timed_by(saves: Sequence[float]) -> Callable[[Removed], Beside]:
    def timed(removed: Removed) -> Beside:
        return beside(1 - sum(saves[place] for place in removed))

    return timed


class TestSearch:
    @pytest.mark.parametrize("share", [0.055, 0.305, 0.525, 0.905])
    def test_the_fewest_blocks_that_meet_the_share_are_found_in_a_handful_of_trials(self, share: float) -> None:
        saves = [0.01] * 99
        decision = decide(share, cuts(["a"] * 99, saves), timed_by(saves))
        assert decision.removed is not None
        left = 1 - 0.01 * len(decision.removed)
        assert left <= share < left + 0.01
        assert len(decision.trials) <= 8

    def test_what_cannot_be_met_is_not_found(self) -> None:
        saves = [0.05] * 8
        decision = decide(0.1, cuts(["a"] * 8, saves), timed_by(saves))
        assert decision.removed is None
        assert decision.measured is None
        assert decision.trials[-1].blocks_removed == 8

    def test_a_piece_that_saves_too_much_is_passed_over_for_finer_ones(self) -> None:
        kinds, saves = ["a", "a", "big", "a", "b", "b", "b"], [0.1, 0.1, 0.4, 0.02, 0.02, 0.02, 0.02]
        decision = decide(0.75, cuts(kinds, saves), timed_by(saves))
        assert decision.removed == (0, 1, 3, 4, 5)
        assert decision.measured is not None
        assert decision.measured.share == pytest.approx(0.74)

    def test_what_saves_nothing_without_the_piece_goes_back_with_it(self) -> None:
        def saved(removed: Removed) -> float:
            both = {1, 2} <= set(removed)
            return 0.1 * (0 in removed) + 0.4 * both + 0.1 * sum(place > 2 for place in removed)

        together = dataclasses.replace(cuts(["a", "pair", "pair", "b", "b"], [0.0] * 5), saved_ms=saved)

        def timed(removed: Removed) -> Beside:
            return beside(1 - saved(removed))

        decision = decide(0.8, together, timed)
        assert decision.removed == (0, 3)

    def test_the_overshoot_stays_where_nothing_finer_meets_the_share(self) -> None:
        saves = [0.1, 0.6, 0.01]
        decision = decide(0.8, cuts(["a", "b", "c"], saves), timed_by(saves))
        assert decision.removed == (0, 1)

    def test_every_trial_says_what_the_table_foretold(self) -> None:
        told = dataclasses.replace(cuts(["a"] * 4, [0.2] * 4), share_before=0.9)
        decision = decide(0.5, told, timed_by([0.15] * 4))
        assert [trial.predicted for trial in decision.trials] == pytest.approx(
            [0.9 - 0.2 * trial.blocks_removed for trial in decision.trials]
        )


class TestBudget:
    def test_the_cut_is_one_whose_engine_was_timed_at_or_below_the_share(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact, context = new_artifact(width=64), new_context()
        only_two_layers = ("conv1", "layer1.0.conv2", "layer2", "layer3")
        stage = Prune(keep=Budget(latency=0.95), recover=UNTRAINED, round_to=32, ignore=only_two_layers)
        pruned = stage.run(artifact, context)
        found = Decision.model_validate_json((context.checkpoints / "latency-1.json").read_bytes())
        assert found.removed is not None
        assert found.measured is not None
        (chosen,) = [each for each in found.trials if each.share == best_share(found.trials, 0.95)]
        assert len(found.removed) == chosen.blocks_removed
        assert isinstance(pruned.blueprint.edits[-1], Resize)
        facts: Any = context.journal.facts
        assert facts["timed on"] == "onnxruntime cpu, batch 1, 1 thread"
        assert facts["latency"]["asked"] == 0.95
        assert facts["latency"]["measured"] == found.measured.share
        assert {"layer1.0.conv1", "layer1.0.conv2"} == {
            layer for row in facts["latency table"] for layer in row["layers"]
        }

    def test_a_resumed_step_goes_on_with_the_cut_it_had_decided(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact, stage = new_artifact(width=32), Prune(keep=Budget(latency=0.8), recover=UNTRAINED)
        context = new_context()
        decision = a_decision(removed=(0, 1, 2), share=0.75)
        resumed(context, decision)
        first, again = stage.run(artifact, context), stage.run(artifact, context)
        assert first.blueprint == again.blueprint
        assert context.journal.facts["engines timed"] == [trial.model_dump() for trial in decision.trials]

    def test_the_steps_of_one_budget_share_what_was_asked(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        for step, share in ((1, 0.89), (2, 0.79)):
            decision = a_decision(removed=(0,), share=share)
            resumed(context, decision, step)
        stage = Prune(keep=Budget(latency=0.8), recover=Recovery(epochs=0), steps=2)
        assert len(stage.run(new_artifact(width=32), context).blueprint.edits) == 2
        facts: Any = context.journal.facts
        assert facts["latency"] == {"asked": 0.8, "predicted by the table": 0.79, "measured": 0.79}

    def test_a_miss_of_more_than_five_per_cent_is_said(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        progress = Hearing()
        context = dataclasses.replace(new_context(), progress=progress)
        resumed(context, a_decision(removed=(0,), share=0.6))
        Prune(keep=Budget(latency=0.8), recover=UNTRAINED).run(new_artifact(width=32), context)
        assert any("60.0% of the latency, asked were 80.0%" in line for line in progress.said)

    def test_a_latency_out_of_reach_is_an_error_that_says_what_can_be_reached(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        missed = a_decision(removed=(0,), share=0.613).model_copy(update={"removed": None, "measured": None})
        resumed(context, missed)
        with pytest.raises(StageError, match=r"61\.3% remain.*Mend: `keep: \{latency: 0\.62\}`"):
            Prune(keep=Budget(latency=0.01), recover=UNTRAINED).run(new_artifact(width=16), context)

    def test_the_rehearsal_times_nothing(self) -> None:
        rehearsal = Prune(keep=Budget(latency=0.7), accept="faster").untrained()
        assert not rehearsal.decides_by_engine
        assert rehearsal.keep == Budget(macs=0.7)


class TestAccept:
    def test_only_a_smaller_engine_is_smaller(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        wide, narrow = new_artifact(width=24), new_artifact(width=8)
        assert accepted(wide, narrow, "smaller", new_context(step="02-a"))
        context = new_context(step="03-b")
        larger = beside(0.5, baseline_bytes=100, candidate_bytes=101)
        (context.checkpoints / "accept.json").write_text(larger.model_dump_json())
        assert not accepted(narrow, wide, "smaller", context)
        assert "asked for a smaller engine" in str(context.journal.facts["undone"])

    def test_nothing_is_timed_where_nothing_was_asked(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context()
        assert accepted(new_artifact(width=8), new_artifact(width=48), "always", context)
        assert not list(context.checkpoints.iterdir())

    def test_the_comparison_is_made_once(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context()
        slower = beside(1.2, verdict="slower")
        Path(context.checkpoints / "accept.json").write_text(slower.model_dump_json())
        assert not accepted(new_artifact(width=48), new_artifact(width=8), "faster", context)

    def test_a_pruning_that_does_not_pay_hands_the_model_on_as_it_came(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact, context = new_artifact(width=16), new_context()
        (context.checkpoints / "accept.json").write_text(beside(1.0, verdict="slower").model_dump_json())
        stage = Prune(keep=Budget(macs=0.8), accept="faster", recover=UNTRAINED)
        assert stage.run(artifact, context) is artifact


class TestBench:
    def test_an_int8_artifact_is_timed_as_int8(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        from potstill.stages.quantize import Quantize

        context = new_context()
        artifact = new_artifact(width=32)
        quantized = Quantize(recover=UNTRAINED, calibration=Calibration(samples=8)).run(artifact, context)
        with context.bench.beside(artifact) as timed:
            found = timed(quantized)
        assert found.candidate_bytes < 0.5 * found.baseline_bytes

    def test_layers_are_timed_by_themselves(self, new_context: NewContext) -> None:
        large, small = torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.Conv2d(64, 64, 1)
        found = new_context().bench.layer_beside(large, small, torch.zeros(1, 64, 16, 16))
        assert found.candidate_bytes < found.baseline_bytes
        assert found.ratio > 0
