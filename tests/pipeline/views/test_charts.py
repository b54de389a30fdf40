"""Facts about the drawings."""

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.export.measurement import Accuracy, Interval, Latency
from potstill.pipeline.comparison.asked import Budget
from potstill.pipeline.comparison.pareto import pareto_front
from potstill.pipeline.journal import CurvePoint
from potstill.pipeline.report import Report, StepReport
from potstill.pipeline.views import curves
from potstill.pipeline.views.curves import training_curves
from potstill.pipeline.views.labels import placed_labels
from potstill.pipeline.views.ranking_chart import ranking_chart
from potstill.pipeline.views.scatter import EnginePoint, scatter
from potstill.pipeline.views.svg import Box, Canvas, Scale, scale_over, shortened, text_width, tick_texts
from potstill.pipeline.views.waterfall import waterfall

WIDTHS = (350.0, 1120.0)


def overlapping(boxes: Sequence[Box]) -> list[tuple[Box, Box]]:
    return [(one, other) for one, other in combinations(boxes, 2) if one.overlaps(other)]


def outside(canvas: Canvas) -> list[Box]:
    page = Box(-1, -1, canvas.width + 1, canvas.height + 1)
    return [box for box in canvas.texts if not page.holds(box)]


def many_steps(samples: ModuleType, count: int, name: str = "distill-from-the-teacher-again-and-again") -> Report:
    """Some faster, some slower than the one before, a few so near to each other that their points touch."""
    speeds = [1.0, 2.1, 2.2, 2.15, 0.7, 5.0, 5.01, 40.0, 39.0, 41.0, 80.0, 79.0]
    accuracies = [354, 355, 355, 354, 200, 340, 341, 340, 339, 351, 352, 353]
    return samples.sample_report(
        [
            samples.Sketch(f"{n + 1:02d}-{name}", accuracies[n], speeds[n], 10**6 // (n + 1), 10**7, epochs=n)
            for n in range(count)
        ]
    )


def point(p50_ms: float, correct: int, label: str = "x") -> EnginePoint:
    latency = Latency(
        batch=1,
        samples=1000,
        p50_ms=p50_ms,
        p50_interval=Interval(low=0.98 * p50_ms, high=1.02 * p50_ms),
        p90_ms=p50_ms,
        p99_ms=None,
        mean_ms=p50_ms,
        throughput=1,
        outliers=0,
    )
    return EnginePoint(label, label, Accuracy(correct=correct, count=400), latency)


VALUES = st.one_of(st.sampled_from([0.0, 1e-4, 100.0]), st.floats(0, 1e-3), st.floats(0, 1e4))


def trained(samples: ModuleType, epochs: Sequence[Sequence[float]]) -> StepReport:
    """A step whose loss had the given terms in each epoch, and whose gradient was never looked at."""
    step: StepReport = samples.sample_report().steps[0]
    curve = tuple(
        CurvePoint(
            epoch=epoch,
            loss=sum(values),
            terms={f"term {n}": value for n, value in enumerate(values)},
            learning_rate=0.1,
        )
        for epoch, values in enumerate(epochs, start=1)
    )
    return step.model_copy(update={"curve": curve})


def styles_of(css: str, selector: str) -> tuple[str, ...]:
    """All that the style sheet says about it."""
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", css)
    return tuple(
        style.strip() for selectors, style in rules if selector in [each.strip() for each in selectors.split(",")]
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [2, 6, 12])
class TestTexts:
    def test_of_the_waterfall_do_not_overlap_or_leave_the_drawing(
        self, samples: ModuleType, count: int, width: float
    ) -> None:
        canvas = waterfall(many_steps(samples, count), width, "w")
        assert overlapping(canvas.texts) == []
        assert outside(canvas) == []

    def test_of_the_scatter_do_not_overlap_or_leave_the_drawing(
        self, samples: ModuleType, count: int, width: float
    ) -> None:
        report = many_steps(samples, count, "quantize")
        points = [
            EnginePoint(each.name, each.name[:2], each.engine.score, each.timing.candidate) for each in report.steps
        ]
        canvas = scatter(points, width, 400, "s")
        assert overlapping(canvas.texts) == []
        assert outside(canvas) == []
        assert canvas.markup().count('class="label') == count

    def test_of_the_scatter_stay_apart_with_budgets_among_the_points(
        self, samples: ModuleType, count: int, width: float
    ) -> None:
        report = many_steps(samples, count, "quantize")
        points = [
            EnginePoint(each.name, each.name[:2], each.engine.score, each.timing.candidate) for each in report.steps
        ]
        p50s = [each.latency.p50_ms for each in points]
        budgets = [
            *(Budget(value, is_latency=True) for value in (*p50s[:3], 1.01 * p50s[0], 2 * max(p50s))),
            *(Budget(value, is_latency=False) for value in (points[0].score.value, 0.98, 0.979, 0.5)),
        ]
        canvas = scatter(points, width, 400, "s", budgets)
        assert overlapping(canvas.texts) == []
        assert outside(canvas) == []
        assert canvas.markup().count("<line x1") >= len(budgets)
        assert canvas.markup().count('class="budget"') > len(budgets)

    def test_of_the_ranking_do_not_overlap_or_leave_the_drawing(
        self, samples: ModuleType, count: int, width: float
    ) -> None:
        report = samples.with_several_targets(samples.sample_report())
        ranking = (report.ranking * 3)[:count]
        named = tuple(
            each.model_copy(update={"target": f"{each.target} with many threads {index}"})
            for index, each in enumerate(ranking)
        )
        for shown in (ranking, named):
            canvas = ranking_chart(report.model_copy(update={"ranking": shown}), width, "r")
            assert overlapping(canvas.texts) == []
            assert outside(canvas) == []

    def test_of_the_curves_do_not_overlap_or_leave_the_drawing(
        self, samples: ModuleType, count: int, width: float
    ) -> None:
        terms = tuple(f"a_rather_long_name_of_a_term_{n}" for n in range(min(count, 9)))
        step = samples.sample_report([samples.Sketch("01-x", 350, 1.0, 10, 10, epochs=count, terms=terms)]).steps[0]
        unvalidated = tuple(each.model_copy(update={"validation": None}) for each in step.curve)
        for each in (step, step.model_copy(update={"curve": unvalidated})):
            canvas = training_curves(each, width, "c")
            assert overlapping(canvas.texts) == []
            assert outside(canvas) == []


class TestCurves:
    def test_a_single_epoch_is_drawn_as_a_point(self, samples: ModuleType) -> None:
        step = samples.sample_report([samples.Sketch("01-x", 350, 1.0, 10, 10, epochs=1)]).steps[0]
        assert "<circle" in training_curves(step, 350, "c").markup()

    def test_without_a_validation_split_there_is_no_panel_for_it(self, samples: ModuleType) -> None:
        step = samples.sample_report().steps[0]
        curve = tuple(each.model_copy(update={"validation": None}) for each in step.curve)
        canvas = training_curves(step.model_copy(update={"curve": curve}), 350, "c")
        assert "validation split (%)" not in canvas.markup()
        assert "no validation split" in canvas.markup()

    @given(st.lists(st.lists(VALUES, min_size=8, max_size=8), min_size=1, max_size=12))
    def test_terms_of_any_size_stay_within_with_their_labels_apart(
        self, samples: ModuleType, epochs: list[list[float]]
    ) -> None:
        canvas = training_curves(trained(samples, epochs), 350, "c")
        assert overlapping(canvas.texts) == []
        assert outside(canvas) == []
        page = Box(0, 0, canvas.width, canvas.height)
        for points in re.findall(r'points="([^"]+)"', canvas.markup()):
            for x, y in (map(float, each.split(",")) for each in points.split()):
                assert page.holds(Box(x, y, x, y))

    def test_a_term_that_is_warmed_up_leaves_the_zero_below_a_logarithmic_scale(self, samples: ModuleType) -> None:
        markup = training_curves(trained(samples, [[100.0, 0.0], [50.0, 1e-4], [20.0, 1e-2]]), 350, "c").markup()
        assert "Loss, logarithmic" in markup
        assert ">0</text>" in markup
        (points,) = re.findall(r'class="curve term-1" points="([^"]+)"', markup)
        heights = [float(each.split(",")[1]) for each in points.split()]
        assert heights == sorted(heights, reverse=True)
        assert heights[0] - heights[1] >= 16

    def test_rounding_below_zero_does_not_forbid_a_logarithm_but_a_negative_term_does(
        self, samples: ModuleType
    ) -> None:
        for value, expected in ((-1e-9, True), (-0.5, False)):
            markup = training_curves(trained(samples, [[100.0, 1.0], [90.0, value]]), 350, "c").markup()
            assert ("Loss, logarithmic" in markup) == expected

    def test_a_term_looks_alike_in_both_panels_and_unlike_seven_others(self, samples: ModuleType) -> None:
        step = trained(samples, [[1.0 + n for n in range(8)]] * 3)
        shares = dict.fromkeys(step.curve[0].terms, 0.125)
        curve = tuple(each.model_copy(update={"gradient_shares": shares}) for each in step.curve)
        markup = training_curves(step.model_copy(update={"curve": curve}), 350, "c").markup()
        for n in range(8):
            assert markup.count(f'"curve term-{n}"') == 2
        assert "Share of the gradient (%)" in markup
        assert "Mean share of the gradient in percent: term 0 12.5, term 1 12.5" in markup
        css = (Path(curves.__file__).with_name("page.css")).read_text()
        assert len({styles_of(css, f"svg .term-{n}") for n in range(8)}) == 8

    def test_shares_are_drawn_where_there_was_a_look_at_several_terms(self, samples: ModuleType) -> None:
        def markup(looks: int, terms: tuple[str, ...]) -> str:
            sketch = samples.Sketch("01-x", 350, 1.0, 10, 10, epochs=4, terms=terms, looks=looks)
            return training_curves(samples.sample_report([sketch]).steps[0], 350, "c").markup()

        assert "Share of the gradient" in markup(1, ("task", "kd"))
        assert "Share of the gradient" in markup(4, ("task", "kd"))
        assert "Share of the gradient" not in markup(0, ("task", "kd"))
        assert "Share of the gradient" not in markup(1, ("task",))


class TestRankingChart:
    def test_bars_begin_at_zero_and_grow_with_the_p50(self, samples: ModuleType) -> None:
        report = samples.with_several_targets(samples.sample_report())
        markup = ranking_chart(report, 1120, "r").markup()
        widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', markup)]
        p50s = [each.comparison.candidate.p50_ms for each in report.ranking]
        assert [width / widths[0] for width in widths] == pytest.approx([p50 / p50s[0] for p50 in p50s], rel=0.01)
        assert len(set(re.findall(r'<rect x="([\d.]+)"', markup))) == 1

    def test_only_the_fastest_and_what_is_within_noise_of_it_are_filled(self, samples: ModuleType) -> None:
        report = samples.with_several_targets(samples.sample_report())
        assert ranking_chart(report, 350, "r").markup().count('class="gain"') == 1
        leader = report.ranking[0]
        level = report.model_copy(update={"ranking": (leader, leader, *report.ranking[1:])})
        assert ranking_chart(level, 350, "r").markup().count('class="gain"') == 2


class TestFronts:
    def test_engines_of_different_grounds_have_a_front_each(self, samples: ModuleType) -> None:
        report = samples.sample_report()
        points = [
            EnginePoint(each.name, each.name[:2], each.engine.score, each.timing.candidate, ground=index % 2)
            for index, each in enumerate(report.steps)
        ]
        assert scatter(points, 350, 400, "s").markup().count('class="front"') == 2
        alike = [EnginePoint(each.name, each.short, each.score, each.latency) for each in points]
        assert scatter(alike, 350, 400, "s").markup().count('class="front"') == 1


class TestParetoFront:
    def test_holds_what_no_other_engine_beats(self) -> None:
        best, fast, beaten, twin = point(2, 390), point(1, 380), point(3, 385), point(2, 380)
        assert pareto_front([best, fast, beaten, twin]) == [fast, best]

    def test_holds_engines_that_are_equal_in_both(self) -> None:
        one, other = point(2, 390), point(2, 390)
        assert pareto_front([one, other, point(3, 390)]) == [one, other]

    @given(st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 400)), min_size=1, max_size=20))
    def test_every_engine_is_on_it_or_beaten_by_one_on_it(self, values: list[tuple[float, int]]) -> None:
        points = [point(p50, correct) for p50, correct in values]
        front = pareto_front(points)
        for each in points:
            assert any(
                one.latency.p50_ms <= each.latency.p50_ms and one.score.value >= each.score.value for one in front
            )


class TestLabels:
    @given(st.lists(st.tuples(st.floats(0, 600), st.floats(0, 300)), min_size=1, max_size=25))
    def test_lie_within_off_each_other_and_off_all_points(self, places: list[tuple[float, float]]) -> None:
        within = Box(0, 0, 600, 300)
        found = placed_labels([(x, y, f"{n:02d}-step") for n, (x, y) in enumerate(places)], within)
        boxes = [label.box for label in found if label is not None]
        assert overlapping(boxes) == []
        assert all(within.holds(box) for box in boxes)
        dots = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in places]
        assert not any(box.overlaps(dot) for box in boxes for dot in dots)

    def test_a_lone_point_has_its_label_at_its_right(self) -> None:
        (label,) = placed_labels([(100, 100, "a")], Box(0, 0, 200, 200))
        assert label is not None
        assert (label.anchor, label.led) == ("start", False)


class TestScale:
    @given(st.lists(st.floats(1e-4, 1e6), min_size=1, max_size=8), st.booleans())
    def test_every_value_and_tick_lies_between_its_ends(self, values: list[float], logarithmic: bool) -> None:
        scale = scale_over(values, 10, 510, logarithmic=logarithmic)
        ticks = scale.ticks(6)
        assert all(9.99 <= scale(value) <= 510.01 for value in [*values, *ticks])
        assert len(ticks) <= 13

    def test_ticks_over_many_powers_of_ten_are_few_and_short(self) -> None:
        ticks = Scale(1e-9, 1e4, 0, 100, logarithmic=True).ticks(4)
        assert 2 <= len(ticks) <= 5
        assert max(map(len, tick_texts(ticks, logarithmic=True))) <= 5
        assert tick_texts([1e-6, 0.01, 100], logarithmic=True) == ["1e−6", "0.01", "100"]

    def test_equal_factors_are_equal_distances(self) -> None:
        scale = Scale(1, 100, 0, 200, logarithmic=True)
        assert scale(10) == pytest.approx(100)
        assert scale.ticks(3) == [1, 10, 100]


class TestShortened:
    def test_keeps_both_ends_of_a_name_and_fits(self) -> None:
        text = shortened("02-distill-from-the-teacher-once-more", 120)
        assert text.startswith("02-d")
        assert text.endswith("ore")
        assert text_width(text) <= 120

    def test_leaves_what_fits(self) -> None:
        assert shortened("02-distill", 200) == "02-distill"
