"""Facts about factors that the engine has to confirm."""

from collections.abc import Callable

import pytest
import torch

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.bench import Beside
from potstill.stages.factorization.confirmation import confirmed
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from tests.support.factorization import planned

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def decided(context: Context, name: str, verdict: str) -> None:
    """Put down a measurement as if it had been made before a kill."""
    ratio = 2.0 if verdict == "faster" else 0.8
    values = {"baseline_ms": 1.0, "candidate_ms": 1 / ratio, "baseline_bytes": 9, "candidate_bytes": 8}
    beside = Beside.model_validate({"ratio": ratio, "low": ratio, "high": ratio, "verdict": verdict} | values)
    (context.checkpoints / f"{name}.json").write_text(beside.model_dump_json())


@pytest.fixture
def low_rank(new_artifact: NewArtifact) -> Artifact:
    """A network whose wide convolutions have few directions, so that factors cost less than the layers."""
    artifact = new_artifact(width=32)
    with torch.no_grad():
        for parameter in artifact.model.parameters():
            if parameter.ndim == 4 and parameter.shape[1] >= 32:
                parameter.copy_(parameter[:4].repeat(len(parameter) // 4, 1, 1, 1))
    return artifact


def test_only_layers_whose_factors_have_the_faster_engine_stay_factorized(
    low_rank: Artifact, new_context: NewContext
) -> None:
    context = new_context()
    candidates = planned(low_rank.model, context.data.example(), 0.9, 8)
    paying = [plan for plan in candidates if plan.pays]
    assert len(paying) >= 2
    decided(context, "layer-0", "faster")
    for number in range(1, len(paying)):
        decided(context, f"layer-{number}", "slower")
    found = confirmed(low_rank.model, candidates, context)
    kept = [plan for plan in found if plan.pays]
    assert kept[0].path == paying[0].path
    assert len(kept) < len(paying)
    refused = [plan for plan in found if plan.engine and not plan.pays]
    assert all("slower" in str(plan.fact()["decision"]) for plan in refused)


def test_layers_are_timed_with_the_shape_they_get_in_the_model(low_rank: Artifact, new_context: NewContext) -> None:
    context = new_context()
    candidates = planned(low_rank.model, context.data.example(), 0.9, 8)
    last = [plan for plan in candidates if plan.pays][-1]
    (found,) = confirmed(low_rank.model, [last], context)
    assert found.engine is not None
    assert (context.checkpoints / "layer-0.json").exists()


def test_a_model_whose_engine_gains_nothing_goes_on_as_it_came(low_rank: Artifact, new_context: NewContext) -> None:
    context = new_context()
    for number in range(40):
        decided(context, f"layer-{number}", "faster")
    decided(context, "accept", "slower")
    stage = Factorize(keep=Keep(energy=0.9), accept="faster", recover=Recovery(epochs=0))
    assert stage.run(low_rank, context) is low_rank
    assert "undone" in context.journal.facts


def test_where_no_engine_is_faster_the_reason_is_said(low_rank: Artifact, new_context: NewContext) -> None:
    context = new_context()
    for number in range(40):
        decided(context, f"layer-{number}", "slower")
    stage = Factorize(keep=Keep(energy=0.9), accept="faster", recover=Recovery(epochs=0))
    assert stage.run(low_rank, context) is low_rank
    assert str(context.journal.facts["factorized layers"]).startswith("0 of")


def test_the_rehearsal_times_nothing() -> None:
    stage = Factorize(keep=Keep(energy=0.9), accept="faster")
    assert stage.decides_by_engine
    assert not stage.untrained().decides_by_engine
