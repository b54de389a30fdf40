"""Facts about how a report shows what a stage measured before it decided."""

from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from potstill.pipeline.views.decision_tables import decision_table
from potstill.pipeline.views.fact_tables import fact_tables
from potstill.pipeline.views.html import report_html
from potstill.pipeline.views.markdown import report_markdown
from potstill.pipeline.views.tables import Table
from potstill.stages.pruning.depth import Drop
from potstill.stages.pruning.latency import Trial
from potstill.stages.pruning.layer_times import LayerTimes, Point
from potstill.stages.pruning.sensitivity import Sensitivity
from potstill.stages.quantization.mixed_precision import LayerSensitivity, TimedReturn

TRIAL = Trial(blocks_removed=12, predicted=0.6351, share=0.6053, p50_ms=0.90111, uncut_p50_ms=1.4887)
POINTS = ((32, 64, 0.1), (32, 48, 0.08), (16, 64, 0.055), (16, 48, 0.0407))
TIMES = LayerTimes(
    layers=("layer1.0.conv1", "layer1.1.conv1"),
    calls=1,
    reads=32,
    writes=64,
    depthwise=False,
    points=tuple(Point(reads=reads, writes=writes, ms=ms) for reads, writes, ms in POINTS),
)
FACTS: dict[str, tuple[str, Any, list[str], list[str]]] = {
    "channels": (
        "sensitivity",
        Sensitivity(layer="conv1", removed=0.25, loss_rise=0.01234, metric=0.9),
        ["Layer", "Channels gone (%)", "Loss rise", "Accuracy (%, training samples)"],
        ["conv1", "25.00", "+0.0123", "90.00"],
    ),
    "blocks": (
        "sensitivity",
        Drop(block="layer1.1", loss_rise=-0.5, metric=0.75, macs_left=0.82, ms_saved=0.0989),
        ["Block", "Loss rise", "Accuracy (%, training samples)", "MACs left (%)", "Saved (ms)"],
        ["layer1.1", "−0.5000", "75.00", "82.00", "0.0989"],
    ),
    "precision": (
        "sensitivity",
        LayerSensitivity(layer="head", loss_in_int8=0.02, metric_without=0.99),
        ["Layer", "Loss by its int8 form", "Accuracy with it in float (%, training samples)"],
        ["head", "+0.0200", "99.00"],
    ),
    "trials": (
        "engines timed",
        TRIAL,
        [
            "Blocks removed",
            "Latency predicted (% of uncut)",
            "Latency measured (% of uncut)",
            "p50 (ms)",
            "p50 uncut (ms)",
        ],
        ["12", "63.51", "60.53", "0.901", "1.49"],
    ),
    "returns": (
        "engines timed",
        TimedReturn(layer="head", engine="1 → 0.9 ms", ratio=1.11, verdict="faster"),
        ["Layer", "Engine", "Speedup", "Verdict"],
        ["head", "1 → 0.9 ms", "1.11×", "faster"],
    ),
    "times": (
        "latency table",
        TIMES,
        [
            "Layer",
            "Channels",
            "Whole (ms)",
            "With fewer outputs",
            "With fewer inputs",
            "With the fewest of both",
        ],
        ["layer1.0.conv1 (and 1 like it)", "32 → 64", "0.100", "48: 0.0800", "16: 0.0550", "16 → 48: 0.0407"],
    ),
}


def told(row: BaseModel) -> dict[str, Any]:
    """As a stage tells it where the task is a classification."""
    return {key.replace("metric", "accuracy"): value for key, value in row.model_dump(mode="json").items()}


def texts(table: Table) -> tuple[list[str], list[str]]:
    heads = [f"{column.title} ({column.unit})" if column.unit else column.title for column in table.columns]
    return heads, [f"{cell.text} ({cell.detail})" if cell.detail else cell.text for cell in table.rows[0]]


class TestTables:
    @pytest.mark.parametrize("kind", FACTS)
    def test_have_heads_with_units_and_values_in_them(self, kind: str) -> None:
        name, row, heads, values = FACTS[kind]
        (table,) = fact_tables({name: [told(row)]})
        assert texts(table) == (heads, values)
        assert table.note

    def test_of_a_depthwise_layer_have_one_row_of_counts(self) -> None:
        points = [{"reads": count, "writes": count, "ms": count / 100} for count in (16, 12, 8)]
        row = {"layers": ["dw"], "calls": 1, "reads": 16, "writes": 16, "depthwise": True, "points": points}
        table = decision_table("latency table", [row])
        assert table is not None
        assert texts(table)[1] == ["dw", "16 → 16", "0.160", "12: 0.120, 8: 0.0800", "–", "–"]

    def test_of_another_metric_are_headed_with_its_name(self) -> None:
        table = decision_table("sensitivity", [{"layer": "conv1", "removed": 0.5, "loss_rise": 0.1, "RMSE": 0.25}])
        assert table is not None
        assert texts(table)[0][-1] == "RMSE (training samples)"
        assert texts(table)[1][-1] == "0.250"

    def test_of_factors_say_kind_and_ranks(self) -> None:
        row = {"layer": "fc", "kind": "svd", "ranks": [8], "macs_saved": 12345, "loss_rise": 0.1, "accuracy": 0.5}
        table = decision_table("sensitivity", [row])
        assert table is not None
        assert texts(table)[1] == ["fc", "svd", "8", "12,345", "+0.1000", "50.00"]

    def test_what_was_not_foretold_is_a_dash(self) -> None:
        table = decision_table("engines timed", [TRIAL.model_copy(update={"predicted": None}).model_dump()])
        assert table is not None
        assert texts(table)[1][1] == "–"

    def test_of_other_facts_are_laid_out_by_shape(self) -> None:
        assert decision_table("layers", [{"layer": "a"}]) is None
        assert decision_table("engines timed", [{"something": 1}]) is None
        (table,) = fact_tables({"engines timed": [{"something": 1}]})
        assert texts(table) == (["Something"], ["1"])


class TestReports:
    def test_show_them_as_tables_and_never_as_json(self, samples: ModuleType) -> None:
        report = samples.sample_report()
        facts = {name: [told(row)] for name, row, *_ in (FACTS["channels"], FACTS["trials"])}
        facts |= {"latency table": [TIMES.model_dump(mode="json")]}
        steps = (*report.steps[:-1], report.steps[-1].model_copy(update={"facts": facts}))
        report = report.model_copy(update={"steps": steps})
        markdown, page = report_markdown(report), report_html(report)
        for heading in ("### Sensitivity", "### Engines timed", "### Latency table"):
            assert heading in markdown
        assert "| conv1 | 25.00 | +0.0123 | 90.00 |" in markdown
        assert (
            "| layer1.0.conv1 (and 1 like it) | 32 → 64 | 0.100 | 48: 0.0800 | 16: 0.0550 | 16 → 48: 0.0407 |"
            in markdown
        )
        for summary in ("Sensitivity (1)", "Engines timed (1)", "Latency table (1)"):
            assert f"<summary>{summary}</summary>" in page
        assert "loss_rise" not in markdown + page
        assert "points" not in page.partition("What the stages say")[2].partition("Run and machine")[0].lower()
