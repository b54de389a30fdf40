"""Facts about what is said of an engine's precision."""

import io
from types import ModuleType

import pytest

from potstill.export.measurement import Audit, EngineMeasurement, LayerPrecision, LayerType
from potstill.pipeline.report import Report
from potstill.pipeline.views import engine_tables
from potstill.pipeline.views.terminal import print_report


def audit(asked: LayerType) -> Audit:
    """Of three layers as large as each other: one as asked, one in float without, one on purpose."""
    found: list[tuple[str, LayerType, bool]] = [
        ("one", asked, False),
        ("two", "float", False),
        ("three", "float", True),
    ]
    layers = tuple(
        LayerPrecision(name=name, kind="Conv", precision=precision, macs=100, reason="because", on_purpose=purpose)
        for name, precision, purpose in found
    )
    return Audit(layers=layers, precision=asked, int8_share=1 / 3, min_int8_share=0.4)


@pytest.fixture
def in_half(samples: ModuleType) -> EngineMeasurement:
    """An audited fp16 engine."""
    engine: EngineMeasurement = samples.sample_report().engines[0]
    changes = {"target": "tensorrt cuda fp16", "precision": "fp16", "audit": audit("fp16")}
    return engine.model_copy(update=changes)


def with_engines(samples: ModuleType, *engines: EngineMeasurement) -> Report:
    report: Report = samples.sample_report()
    return report.model_copy(update={"engines": engines, "ranking": ()})


class TestAudit:
    @pytest.mark.parametrize("asked", ["int8", "int4_weights", "fp8", "fp16", "bf16"])
    def test_its_sentence_names_the_precision_that_was_asked_for(self, asked: LayerType) -> None:
        assert engine_tables.audit_sentence(audit(asked)) == (
            f"1 of 3 layers run in {asked}, 33.33 % of the multiply-accumulates; 1 is not, on purpose; "
            "at least 40.00 % was asked of the others."
        )

    def test_a_layer_is_bad_where_it_is_neither_as_asked_nor_otherwise_on_purpose(self) -> None:
        mixed = audit("int8")
        half = mixed.layers[1].model_copy(update={"precision": "fp16"})
        table = engine_tables.audit_table(mixed.model_copy(update={"layers": (*mixed.layers, half)}))
        assert [(row[2].text, row[2].detail, row[2].tone) for row in table.rows] == [
            ("int8", "", "plain"),
            ("float", "", "bad"),
            ("float", "on purpose", "quiet"),
            ("fp16", "", "bad"),
        ]

    def test_the_share_of_an_engine_says_of_which_precision_it_is(
        self, samples: ModuleType, in_half: EngineMeasurement
    ) -> None:
        quantized = in_half.model_copy(update={"target": "a", "precision": "int8", "audit": audit("int8")})
        plain = in_half.model_copy(update={"target": "b", "precision": "fp32", "audit": None})
        table = engine_tables.engines_table(with_engines(samples, in_half, quantized, plain))
        place = [column.title for column in table.columns].index("MACs as asked")
        found = [(row[place].text, row[place].detail) for row in table.rows]
        assert found == [("33.33", "in fp16"), ("33.33", "in int8"), ("not audited", "fp32 engine")]

    def test_the_layers_of_the_quantized_engine_are_listed_before_those_of_another(
        self, samples: ModuleType, in_half: EngineMeasurement
    ) -> None:
        quantized = in_half.model_copy(update={"target": "a", "precision": "int8", "audit": audit("int8")})
        assert engine_tables.audited(with_engines(samples, in_half, quantized)) == quantized
        assert engine_tables.audited(with_engines(samples, in_half)) == in_half

    def test_the_terminal_lists_what_runs_otherwise(self, samples: ModuleType, in_half: EngineMeasurement) -> None:
        stream = io.StringIO()
        print_report(with_engines(samples, in_half), stream)
        printed = " ".join(stream.getvalue().split())
        assert "tensorrt cuda fp16: 1 of 3 layers run in fp16" in printed
        assert "float: two (Conv, 100 MACs): because" in printed
