"""Facts about how a comparison is told."""

import io
import re
from pathlib import Path
from types import ModuleType

from potstill.export.measurement import Interval
from potstill.pipeline.comparison.compare import Compared, compare
from potstill.pipeline.comparison.request import compared_as_asked
from potstill.pipeline.report import Report
from potstill.pipeline.views import compare_details, compare_tables, layer_tables, pareto_table
from potstill.pipeline.views.compare_views import comparison_html, comparison_markdown, print_comparison


def several(samples: ModuleType, folder: Path) -> Compared:
    """Two runs of different machines and a profile of the first one's."""
    far = samples.sample_report(on=samples.machine("Another Processor"), name="far")
    for name, report in (("a", samples.sample_report()), ("b", far)):
        (folder / name).mkdir()
        (folder / name / "report.json").write_text(report.model_dump_json())
    layers = samples.operators(samples.LAYERS, 0.5)
    (folder / "profile.json").write_text(samples.profile_text(["one.onnx"], layers=layers))
    return compared_as_asked([folder / "a", folder / "b", folder / "profile.json"])


def pair(first: Report, second: Report) -> Compared:
    return compare([(Path("runs/a"), first), (Path("runs/b"), second)])


class TestViews:
    def test_every_latency_names_its_machine_where_they_differ(self, samples: ModuleType) -> None:
        comparison = pair(samples.sample_report(), samples.sample_report(on=samples.machine("Another Processor")))
        for table in (
            compare_tables.finals_table(comparison),
            compare_details.steps_table(comparison),
            compare_details.engines_table(comparison),
        ):
            titles = [column.title for column in table.columns]
            timed = [titles.index(title) for title in ("p50", "p99", "Speedup", "Throughput") if title in titles]
            assert timed
            cells = [row[index] for row in table.rows for index in timed]
            assert all(re.search(r"(^|;\n)machine [12]$", cell.detail) for cell in cells if cell.text[0].isdigit())
            assert all(re.search(r"machine [12]$", row[0].detail) for row in table.rows)
        assert "different machines" in comparison_html(comparison)
        assert "different machines" in comparison_markdown(comparison)

    def test_every_measured_number_in_every_table_names_its_machine(self, samples: ModuleType, tmp_path: Path) -> None:
        comparison = several(samples, tmp_path)
        tables = [
            compare_tables.finals_table(comparison),
            compare_tables.differences_table(comparison),
            compare_details.steps_table(comparison),
            compare_details.engines_table(comparison),
            pareto_table.pareto_table(comparison),
            *layer_tables.layer_tables(comparison),
        ]
        counted = {"Batch", "Threads", "n", "File", "MACs", "Parameters"}
        for table in tables:
            measured = [at for at, column in enumerate(table.columns) if column.numeric and column.title not in counted]
            cells = [row[at] for row in table.rows for at in measured]
            numbers = [cell for cell in cells if any(each.isdigit() for each in cell.text)]
            assert numbers
            assert [cell for cell in numbers if "machine" not in cell.detail] == []
        assert "machine 2)" in pareto_table.front_sentence(comparison)

    def test_profiles_stand_in_all_views(self, samples: ModuleType, tmp_path: Path) -> None:
        comparison = several(samples, tmp_path)
        stream = io.StringIO()
        print_comparison(comparison, stream)
        for text in (comparison_html(comparison), comparison_markdown(comparison), stream.getvalue()):
            words = " ".join(text.split())
            assert "one.onnx against A digits" in words
            assert "a profile runs no test samples" in words

    def test_profiles_alone_need_no_metric(self, samples: ModuleType, tmp_path: Path) -> None:
        files = [tmp_path / "a.json", tmp_path / "b.json"]
        for file in files:
            file.write_text(samples.profile_text(["one.onnx", "two.onnx"]))
        comparison = compared_as_asked(files)
        page = comparison_html(comparison)
        assert "B1 one.onnx against A1 one.onnx: latency within noise." in page
        assert "accuracy" not in page.lower()
        assert "A2 two.onnx" in comparison_markdown(comparison)

    def test_the_front_is_told_and_what_is_beaten_by_which(self, samples: ModuleType) -> None:
        report = samples.with_several_targets(samples.sample_report())
        comparison = compare([(Path("a"), report)], least=1)
        rows = {row[0].text: row for row in pareto_table.pareto_table(comparison).rows}
        place = next(
            at for at, column in enumerate(pareto_table.pareto_table(comparison).columns) if column.title == "Place"
        )
        assert (rows["A6c"][place].text, rows["A6c"][place].detail) == ("on the front", "")
        assert (rows["A3"][place].text, rows["A3"][place].detail) == ("on the front", "within noise of A5")
        assert rows["A6d"][place].text == "beaten by A6c"
        assert "A6c: 1.68× the speed" in rows["A6d"][place].detail
        assert "5 other engines are beaten" in pareto_table.front_sentence(comparison)

    def test_failed_conditions_come_first_and_budgets_are_drawn(self, samples: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "report.json").write_text(samples.sample_report().model_dump_json())
        comparison = compared_as_asked([tmp_path], fail_if=["p99_ms>0.1"], budgets=["p50_ms=0.4", "accuracy=98%"])
        page = comparison_html(comparison)
        assert page.index("p99_ms&gt;0.1 FAILED") < page.index("<table>")
        assert page.count('class="budget"') >= 2 * (2 + 2)  # a line and a label each, in both forms
        assert "budget 98.00 %" in page
        assert "over budget" in page
        assert "**✗ p99\\_ms&gt;0.1 FAILED" in comparison_markdown(comparison)

    def test_on_one_machine_no_number_is_marked(self, samples: ModuleType) -> None:
        page = comparison_html(pair(samples.sample_report(), samples.sample_report()))
        assert "machine 1" not in page

    def test_the_terminal_shows_verdicts_and_what_differs(self, samples: ModuleType) -> None:
        stream = io.StringIO()
        other = samples.sample_report(recipe=samples.RECIPE.replace("epochs: 10", "epochs: 20"), name="[red]longer")
        print_comparison(pair(samples.sample_report(), other), stream)
        text = stream.getvalue()
        assert "B [red]longer against A digits: latency within noise" in text
        assert "stages.distill.epochs" in text
        assert "Newcombe" in text

    def test_a_dozen_runs_fit_on_one_page(self, samples: ModuleType) -> None:
        runs = [(Path(f"runs/{n}"), samples.sample_report(name=f"run-{n}")) for n in range(12)]
        assert len(comparison_html(compare(runs)).encode()) < 1_000_000


class TestOtherMetrics:
    def test_runs_of_a_regression_are_compared_by_its_error(self, samples: ModuleType) -> None:
        regression = samples.as_regression(samples.sample_report())
        worse = regression.steps[-1].engine.score.model_copy(
            update={"value": 0.5, "interval": Interval(low=0.48, high=0.52)}
        )
        step = regression.steps[-1]
        changed = step.model_copy(update={"engine": step.engine.model_copy(update={"score": worse})})
        other = regression.model_copy(update={"steps": (*regression.steps[:-1], changed)})
        comparison = pair(regression, other)
        (against,) = comparison.against_first
        assert against.score is not None
        assert (against.score.significant, against.score.improves) == (True, False)
        text = comparison_markdown(comparison)
        assert "RMSE +0.15000; files of the same size" in text
        assert "RMSE (lower is better)" in text
        assert "accura" not in text.lower().replace("max\\_accuracy\\_drop", "")

    def test_runs_of_different_metrics_are_not(self, samples: ModuleType) -> None:
        report = samples.sample_report()
        comparison = pair(report, samples.as_regression(report))
        (against,) = comparison.against_first
        assert (against.score, against.score_reason) == (None, "different metrics, accuracy and RMSE")
        text = comparison_markdown(comparison)
        assert "judged by different metrics" in text
        assert "| accuracy 98.05 % (" in text
        assert "| RMSE 0.3500 (0.3360 to 0.3675) |" in text
        page = comparison_html(comparison)
        assert "Not drawn: the runs are judged by different metrics." in page
