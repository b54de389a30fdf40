"""Facts about how the offline and the server scenario, percentiles and profiles are told."""

from datetime import UTC, datetime
from io import StringIO
from types import ModuleType

import numpy as np

from potstill.export.measurement import Interval, Latency, Offline, OfflinePoint, OperatorTime, Server, ServerTrial
from potstill.export.resampling import compared, latency_of
from potstill.pipeline.profile import Profile, ProfiledEngine
from potstill.pipeline.report import Report
from potstill.pipeline.views.html import report_html
from potstill.pipeline.views.markdown import report_markdown
from potstill.pipeline.views.profile_tables import latency_table, layers_table
from potstill.pipeline.views.profile_views import print_profile
from potstill.pipeline.views.terminal import print_report


def point(batch: int, throughput: float) -> OfflinePoint:
    return OfflinePoint(
        batch=batch, throughput=throughput, interval=Interval(low=0.98 * throughput, high=1.02 * throughput)
    )


OFFLINE = Offline(best=point(8, 4210), sweep=(point(1, 2000), point(4, 4000), point(8, 4210)), knee=4)


def trial(rate: float, p99_ms: float | None, *, seconds: float = 60.0) -> ServerTrial:
    return ServerTrial(
        rate=rate,
        queries=round(rate * seconds),
        seconds=seconds,
        p50_ms=0.6,
        p99_ms=p99_ms,
        p99_interval=None if p99_ms is None else Interval(low=0.9 * p99_ms, high=1.1 * p99_ms),
        met=p99_ms is not None and p99_ms <= 5,
    )


def server(*replays: ServerTrial) -> Server:
    return Server(
        bound_ms=5,
        best=replays[-1] if replays and replays[-1].met else None,
        trials=(trial(1000, 4.0, seconds=5), trial(1200, None, seconds=2)),
        replays=replays,
    )


def with_scenarios(report: Report, found: Server) -> Report:
    engines = tuple(each.model_copy(update={"offline": OFFLINE, "server": found}) for each in report.engines)
    teacher = report.steps[0].engine.model_copy(update={"server": found})
    steps = (report.steps[0].model_copy(update={"engine": teacher}), *report.steps[1:])
    return report.model_copy(update={"engines": engines, "steps": steps})


class TestScenarios:
    def test_they_stand_in_every_view_and_nowhere_without_them(self, samples: ModuleType) -> None:
        plain = samples.sample_report()
        assert "## Offline" not in report_markdown(plain)
        report = with_scenarios(plain, server(trial(1000, 4.2)))
        terminal = StringIO()
        print_report(report, terminal)
        for text in (report_markdown(report), report_html(report), terminal.getvalue()):
            assert "Offline" in text
            assert "4,210" in text
            assert "1,000" in text

    def test_best_size_and_knee_are_marked(self, samples: ModuleType) -> None:
        text = report_markdown(with_scenarios(samples.sample_report(), server(trial(1000, 4.2))))
        assert "| onnxruntime cpu int8 | 8 | **4,210** (4,126 to 4,294) | best |" in text
        assert "| onnxruntime cpu int8 | 4 | 4,000 (3,920 to 4,080) | knee |" in text

    def test_the_teachers_engine_stands_beside_the_final_ones(self, samples: ModuleType) -> None:
        text = report_markdown(with_scenarios(samples.sample_report(), server(trial(1000, 4.2))))
        assert "| 01-train: onnxruntime cpu fp32 | 5.00 | **1,000** | 0.600 | 4.200 (3.780 to 4.620) |" in text

    def test_a_rate_that_was_lowered_says_so(self, samples: ModuleType) -> None:
        report = with_scenarios(samples.sample_report(), server(trial(1000, 6.0), trial(950, 4.9)))
        assert "**950** (lowered from 1,000)" in report_markdown(report)

    def test_no_rate_says_why(self, samples: ModuleType) -> None:
        text = report_markdown(with_scenarios(samples.sample_report(), server()))
        assert "**none** (p99 over the bound even at 1,200)" in text
        text = report_markdown(with_scenarios(samples.sample_report(), server(trial(1000, 6.0), trial(950, 5.9))))
        assert "**none** (950 did not hold in a replay either)" in text


class TestPercentiles:
    def test_they_stand_with_their_intervals(self, samples: ModuleType) -> None:
        text = report_markdown(samples.sample_report())
        (row,) = [line for line in text.splitlines() if line.startswith("| onnxruntime cpu int8 | 1 |")]
        assert "0.276 (0.271 to 0.284)" in row

    def test_one_without_enough_samples_says_how_many_there_are(self, samples: ModuleType) -> None:
        report = samples.sample_report()
        timing = report.engines[0].latency[0]
        few = timing.candidate.model_copy(update={"samples": 50, "p90_ms": None, "p90_interval": None, "p99_ms": None})
        latency = (timing.model_copy(update={"candidate": few}),)
        engines = (report.engines[0].model_copy(update={"latency": latency}), report.engines[1])
        text = report_markdown(report.model_copy(update={"engines": engines}))
        assert "not measured (50 of 100 samples)" in text
        assert "not measured (50 of 1,000 samples)" in text

    def test_a_latency_of_an_older_report_has_no_intervals_of_them(self) -> None:
        old = {
            **{"batch": 1, "samples": 1000, "p50_ms": 1.0, "p50_interval": {"low": 0.9, "high": 1.1}, "p90_ms": 1.2},
            **{"p99_ms": 1.4, "mean_ms": 1.0, "throughput": 1000.0, "outliers": 3},
        }
        found = Latency.model_validate(old)
        assert (found.p90_interval, found.p99_interval) == (None, None)


def entry(name: str, *layers: tuple[str, float]) -> ProfiledEngine:
    seconds = [np.full(10, 0.001)] * 12
    return ProfiledEngine(
        name=name,
        file=name,
        sha256="0" * 64,
        file_bytes=10,
        runtime="onnxruntime",
        device="cpu",
        threads=1,
        provider="CPUExecutionProvider",
        inputs={"x": (None, 4)},
        input_types={"x": "float32"},
        operators={},
        latency=(latency_of(1, seconds),),
        device_latency=(),
        beside_first=(compared(1, seconds, seconds),),
        peak_memory_bytes=None,
        device_memory_bytes=None,
        layers=tuple(OperatorTime(layer=layer, operator="Conv", ms=ms) for layer, ms in layers),
    )


class TestProfile:
    def test_layers_of_engines_stand_side_by_side_with_their_shares(self) -> None:
        first = entry("a", ("conv1", 0.3), ("", 0.1), ("conv1", 0.1))
        table = layers_table([first, entry("b", ("conv1", 0.2), ("conv9", 0.2))])
        texts = [[cell.text for cell in row] for row in table.rows]
        assert texts == [
            ["conv1", "0.400", "0.200"],
            ["put in by the runtime", "0.100", "–"],
            ["conv9", "–", "0.200"],
            ["All", "0.500", "0.400"],
        ]
        assert table.rows[0][1].detail == "80.0 %"

    def test_only_engines_after_the_first_have_a_speed_beside_it(self, samples: ModuleType) -> None:
        found = Profile(
            started=datetime.now(UTC), machine=samples.machine(), inputs="random", entries=(entry("a"), entry("b"))
        )
        out = StringIO()
        print_profile(found, out)
        assert out.getvalue().count("1.00×") == 1
        assert [cell.text for cell in latency_table(found).rows[0]].count("not measured") == 2  # p99 and memory
        assert Profile.model_validate_json(found.model_dump_json()) == found
