"""Facts about a budget of latency and about `accept`: engines are built and timed, and decisions survive a kill."""

import json
from collections.abc import Callable
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
from potstill.stages.pruning.latency import Trial, best_of, trials_for
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

UNTRAINED = Recovery(epochs=0)


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


class TestSearch:
    @pytest.mark.parametrize("share", [0.05, 0.3, 0.52, 0.9])
    def test_the_fewest_blocks_that_meet_the_share_are_found_in_a_handful_of_trials(self, share: float) -> None:
        latency = [1 - 0.01 * count for count in range(101)]

        def timed(count: int) -> Beside:
            return beside(latency[count])

        trials = trials_for(share, 99, timed)
        best = best_of(trials, share)
        assert best is not None
        assert latency[best.blocks_removed] <= share < latency[best.blocks_removed - 1]
        assert len(trials) <= 7

    def test_what_cannot_be_met_is_not_found(self) -> None:
        def timed(count: int) -> Beside:
            return beside(1 - 0.05 * count)

        trials = trials_for(0.1, 8, timed)
        assert best_of(trials, 0.1) is None
        assert trials[-1].blocks_removed == 8


class TestBudget:
    def test_the_cut_is_one_whose_engine_was_timed_at_or_below_the_share(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact, context = new_artifact(width=48), new_context()
        pruned = Prune(keep=Budget(latency=0.9), recover=UNTRAINED, round_to=16).run(artifact, context)
        trials = [Trial.model_validate(fact) for fact in context.journal.facts["engines timed"]]  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
        best = best_of(trials, 0.9)
        assert best is not None
        assert isinstance(pruned.blueprint.edits[-1], Resize)
        assert context.journal.facts["timed on"] == "onnxruntime cpu, batch 1, 1 thread"

    def test_a_resumed_step_goes_on_with_the_cut_it_had_decided(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact, stage = new_artifact(width=32), Prune(keep=Budget(latency=0.8), recover=UNTRAINED)
        context = new_context()
        trial = Trial(blocks_removed=3, share=0.75, p50_ms=0.75, uncut_p50_ms=1.0)
        (context.checkpoints / "latency-1.json").write_text(json.dumps([trial.model_dump()]))
        first, again = stage.run(artifact, context), stage.run(artifact, context)
        assert first.blueprint == again.blueprint
        assert context.journal.facts["engines timed"] == [trial.model_dump()]

    def test_a_latency_out_of_reach_is_an_error_that_says_what_can_be_reached(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        trial = Trial(blocks_removed=9, share=0.613, p50_ms=0.6, uncut_p50_ms=1.0)
        (context.checkpoints / "latency-1.json").write_text(json.dumps([trial.model_dump()]))
        with pytest.raises(StageError, match=r"61\.3% remain.*Mend: `keep: \{latency: 0\.62\}`"):
            Prune(keep=Budget(latency=0.01), recover=UNTRAINED).run(new_artifact(width=16), context)

    def test_the_rehearsal_times_nothing(self) -> None:
        rehearsal = Prune(keep=Budget(latency=0.7), accept="faster").untrained()
        assert not rehearsal.decides_by_engine
        assert rehearsal.keep == Budget(macs=0.7)


class TestAccept:
    def test_only_a_smaller_engine_is_smaller(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        wide, narrow = new_artifact(width=48), new_artifact(width=8)
        assert accepted(wide, narrow, "smaller", new_context(step="02-a"))
        context = new_context(step="03-b")
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
