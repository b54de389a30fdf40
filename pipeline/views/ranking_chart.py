"""The final engines' latencies as bars from zero, the fastest first."""

from ...export.measurement import Ranked
from ..report import Report
from . import wording
from .svg import Box, Canvas, Scale, scale_over, shortened, text_width, tick_texts

ROW, BAR = 30.0, 12.0
STACKED_ROW = 44.0
NARROW_BELOW = 560.0
TOP, BOTTOM = 10.0, 44.0


def ranking_chart(report: Report, width: float, key: str) -> Canvas:
    """One row an engine: its p50 with its interval, filled where nothing is surely faster."""
    ranking = report.ranking
    stacked = width < NARROW_BELOW
    row = STACKED_ROW if stacked else ROW
    canvas = Canvas(width, TOP + row * len(ranking) + BOTTOM, "Runtimes ranked", _description(ranking), key)
    bottom = TOP + row * len(ranking)
    names = 0.0 if stacked else min(max(text_width(each.target) for each in ranking) + 14, width * 0.3)
    decimals = wording.decimals_for(each.comparison.candidate.p50_ms for each in ranking)
    figures = max(text_width(_figure(each, decimals, index == 0)) for index, each in enumerate(ranking)) + 12
    scale = _scale(ranking, names, width - (8 if stacked else figures))
    _axis(canvas, scale, bottom, ranking[0].comparison.batch)
    for index, each in enumerate(ranking):
        top = TOP + index * row
        figure = _figure(each, decimals, index == 0)
        baseline = top + 14 if stacked else top + row / 2 + 4
        room = width - figures if stacked else names - 14
        canvas.text(0, baseline, shortened(each.target, room), "name", full=each.target)
        canvas.text(width, baseline, figure, "figure", anchor="end")
        _bar(canvas, each, scale, top + (28 if stacked else row / 2))
    return canvas


def _scale(ranking: tuple[Ranked, ...], start: float, end: float) -> Scale:
    ends = [each.comparison.candidate.p50_interval.high for each in ranking]
    longest = max(*ends, *(each.comparison.candidate.p50_ms for each in ranking))
    return Scale(0.0, scale_over([0.0, longest], start, end).high, start, end)


def _axis(canvas: Canvas, scale: Scale, bottom: float, batch: int) -> None:
    ticks = scale.ticks(6 if canvas.width > NARROW_BELOW else 4)
    for value, text in zip(ticks, tick_texts(ticks), strict=True):
        canvas.line((scale(value), TOP), (scale(value), bottom), "grid")
        half = text_width(text, 11) / 2
        canvas.text(
            min(max(scale(value), half), canvas.width - half), bottom + 16, text, "tick", anchor="middle", size=11
        )
    canvas.line((scale.start, bottom), (scale.end, bottom), "axis")
    canvas.text(canvas.width, bottom + 38, f"p50 latency (ms, batch {batch})", "axis-title", anchor="end")


def _bar(canvas: Canvas, ranked: Ranked, scale: Scale, middle: float) -> None:
    latency = ranked.comparison.candidate
    css = "even" if ranked.comparison.verdict == "slower" else "gain"
    canvas.rectangle(Box(scale(0), middle - BAR / 2, scale(latency.p50_ms), middle + BAR / 2), css)
    low, high = scale(latency.p50_interval.low), scale(latency.p50_interval.high)
    canvas.line((low, middle), (high, middle), "mark")
    for end in (low, high):
        canvas.line((end, middle - 4), (end, middle + 4), "mark")


def _figure(ranked: Ranked, decimals: int, is_first: bool) -> str:
    """The median, and how it stands to the fastest."""
    p50 = f"{wording.plain(ranked.comparison.candidate.p50_ms, decimals)} ms"
    if is_first:
        return p50
    verdict = "" if ranked.comparison.verdict == "slower" else ", noise"
    return f"{p50}, {wording.ratio(1 / ranked.comparison.ratio)}{verdict}"


def _description(ranking: tuple[Ranked, ...]) -> str:
    listed = "; ".join(f"{each.target}: {each.comparison.candidate.p50_ms:.3g} ms" for each in ranking)
    return f"Final engines by rising p50 latency, with 95 % intervals. {listed}."
