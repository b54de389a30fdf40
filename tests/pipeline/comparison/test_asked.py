"""Facts about conditions and budgets as they are written."""

from pathlib import Path
from types import ModuleType

import pytest

from potstill.pipeline.comparison.asked import Budget, Condition, budget, condition, lines
from potstill.pipeline.comparison.contender import Run
from potstill.pipeline.errors import UsageError
from potstill.pipeline.metric import ACCURACY, RMSE


class TestCondition:
    @pytest.mark.parametrize(
        ("text", "name", "operator", "limit"),
        [
            ("p99_ms>2", "p99_ms", ">", 2.0),
            (" p50_ms >= 0.5 ", "p50_ms", ">=", 0.5),
            ("accuracy<0.92", "accuracy", "<", 0.92),
            ("Accuracy<=92%", "accuracy", "<=", 0.92),
            ("file_bytes>1.5e6", "file_bytes", ">", 1.5e6),
            ("regression>5%", "regression", ">", 0.05),
        ],
    )
    def test_is_a_name_an_operator_and_a_value(self, text: str, name: str, operator: str, limit: float) -> None:
        found = condition(text, ACCURACY)
        assert (found.text, found.name, found.operator, found.limit) == (text, name, operator, pytest.approx(limit))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("p99_ms", "is no condition; write a number's name, one of < <= > >=, and a value"),
            ("p99_ms=2", "is no condition"),
            ("p99_ms>>2", "is no condition"),
            (">2", "is no condition"),
            (
                "p9_ms>2",
                r"there is no number `p9_ms`; did you mean `p\d+_ms`\? allowed: regression, p50_ms, .*accuracy",
            ),
            ("acuracy<0.9", "did you mean `accuracy`"),
            ("RMSE<0.9", "there is no number `RMSE`; allowed:"),
            ("p99_ms>two", "`two` is no number here; write one, such as 2"),
            ("p99_ms>nan", "`nan` is no number here"),
            ("p99_ms>5%", "`5%` is no number here"),
            ("accuracy<92", "accuracy is a share from 0 to 1; write 0.92 or 92%"),
            ("regression>0.05", "a regression is more than a share in percent; write 'regression>5%'"),
            ("regression<5%", "write 'regression>5%'"),
        ],
    )
    def test_what_cannot_be_asked_is_refused_with_what_can(self, text: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            condition(text, ACCURACY)

    def test_the_metric_is_the_runs_own(self) -> None:
        assert condition("rmse>0.5", RMSE).name == "RMSE"
        with pytest.raises(UsageError, match="there is no number `accuracy`"):
            condition("accuracy<0.9", RMSE)

    @pytest.mark.parametrize(
        ("operator", "held"),
        [("<", [True, False, False]), ("<=", [True, True, False]), (">", [False, False, True])],
    )
    def test_holds_by_its_operator(self, operator: str, held: list[bool]) -> None:
        found = condition(f"p50_ms{operator}2", None)
        assert isinstance(found, Condition)
        assert [found.holds(value) for value in (1.0, 2.0, 3.0)] == held


class TestBudget:
    def test_is_a_latency_or_the_metric(self) -> None:
        assert budget("p50_ms=2", ACCURACY) == Budget(2.0, is_latency=True)
        assert budget("accuracy = 92%", ACCURACY) == Budget(pytest.approx(0.92), is_latency=False)
        assert budget("RMSE=3.5", RMSE) == Budget(3.5, is_latency=False)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("p50_ms", "is no budget; write a name and a value, such as p50_ms=2"),
            ("p50_ms=", "is no budget"),
            ("p50_ms=0", "a latency is above zero"),
            ("p99_ms=2", "there is no number `p99_ms`; did you mean `p50_ms`"),
            ("accuracy=92", "write 0.92 or 92%"),
        ],
    )
    def test_what_is_none_is_refused(self, text: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            budget(text, ACCURACY)


class TestLines:
    def test_goals_of_latency_and_metric_are_lines_and_equal_ones_are_one(self, samples: ModuleType) -> None:
        runs = [Run(letter, Path(letter), samples.sample_report()) for letter in "AB"]
        asked = Budget(0.4, is_latency=True)
        drawn, drop, speed = lines([asked, asked], runs)
        final = runs[0].report.steps[-1].timing
        assert drawn == asked
        assert (drop.is_latency, drop.limit) == (False, pytest.approx(354 / 359 - 0.01))
        assert (speed.is_latency, speed.limit) == (True, pytest.approx(final.baseline.p50_ms / 12))
        assert (drop.label, speed.label) == ("A, B: max_accuracy_drop", "A, B: min_speedup")
        assert (speed.concerns("A"), speed.concerns("C"), drawn.concerns("C")) == (True, False, True)

    def test_a_regressions_goal_lies_above_its_teacher(self, samples: ModuleType) -> None:
        report = samples.as_regression(samples.sample_report())
        (line,) = lines([], [Run("A", Path("a"), report)])
        assert line.limit == pytest.approx(1.05 * report.steps[0].engine.score.value)
