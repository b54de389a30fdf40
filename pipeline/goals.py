"""Whether the final engine is what the recipe asked for."""

from collections.abc import Iterator

from ..export.measurement import EngineMeasurement, Score
from .recipe import Goals
from .report import GoalResult


def judged(goals: Goals, teacher: EngineMeasurement, final: EngineMeasurement) -> tuple[GoalResult, ...]:
    """Each goal that was set, against the numbers of the final engine of the first target."""
    return tuple(_judgements(goals, teacher, final))


def _judgements(goals: Goals, teacher: EngineMeasurement, final: EngineMeasurement) -> Iterator[GoalResult]:
    first = final.latency[0]
    if goals.max_accuracy_drop is not None:
        # Both are shares of the same count of samples; a float's last digit must not decide.
        drop = round(teacher.score.value - final.score.value, 12)
        limit = goals.max_accuracy_drop
        change = f"{'fell' if drop > 0 else 'rose'} by {100 * abs(drop):.2f} points" if drop else "stayed as it was"
        sentence = f"accuracy {change}, a fall of at most {100 * limit:g} asked"
        yield _result("max_accuracy_drop", limit, drop, drop <= limit, sentence)
    if goals.max_worsening is not None:
        yield _worsening(goals.max_worsening, teacher.score, final.score)
    if goals.min_speedup is not None:
        sentence = f"{first.ratio:.2f}x the teacher's speed at batch {first.batch}"
        met = first.ratio >= goals.min_speedup
        sentence += f", at least {goals.min_speedup:g}x asked"
        yield _result("min_speedup", goals.min_speedup, first.ratio, met, sentence)
    if goals.max_p50_ms is not None:
        p50 = first.candidate.p50_ms
        yield _at_most("max_p50_ms", goals.max_p50_ms, p50, f"p50 is {p50:.3f} ms at batch {first.batch}")
    if goals.max_p99_ms is not None:
        p99 = first.candidate.p99_ms
        if p99 is None:
            sentence = f"p99 was not measured: {first.candidate.samples} samples, 1,000 needed"
            yield _result("max_p99_ms", goals.max_p99_ms, None, met=False, sentence=sentence)
        else:
            yield _at_most("max_p99_ms", goals.max_p99_ms, p99, f"p99 is {p99:.3f} ms at batch {first.batch}")
    if goals.max_file_bytes is not None:
        size = final.file_bytes
        yield _at_most("max_file_bytes", goals.max_file_bytes, size, f"the engine file has {size:,} bytes")


def _worsening(limit: float, teacher: Score, final: Score) -> GoalResult:
    metric = final.metric
    change = final.value - teacher.value
    went = "rose" if change > 0 else "fell" if change < 0 else "stayed"
    story = f"{metric.name} {went} from {teacher.value:.4g} to {final.value:.4g}"
    worse = change != 0 and not metric.improves(change)
    if teacher.value == 0:
        sentence = f"{story}; there is no share of a teacher's zero"
        return _result("max_worsening", limit, None, met=not worse, sentence=sentence)
    share = abs(change / teacher.value) * (1 if worse else -1)
    verdict = f"{100 * abs(share):.2f} % {'worse' if worse else 'better'}" if change else "the same"
    sentence = f"{story}, {verdict}, at most {100 * limit:g} % worse asked"
    return _result("max_worsening", limit, share, share <= limit, sentence)


def _at_most(goal: str, limit: float, value: float, sentence: str) -> GoalResult:
    return _result(goal, limit, value, value <= limit, f"{sentence}, at most {limit:g} asked")


def _result(goal: str, limit: float, value: float | None, met: bool, sentence: str) -> GoalResult:
    verdict = "met" if met else "MISSED"
    return GoalResult(goal=goal, limit=limit, value=value, met=met, sentence=f"{goal} {verdict}: {sentence}")
