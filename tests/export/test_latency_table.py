"""Facts about the latency table: parts timed as engines of their own, kept for later runs."""

from pathlib import Path

import pytest
import torch
from torch import nn

from potstill.export.bench import TargetBench
from potstill.export.latency_table import LatencyTable
from potstill.export.onnx_file import exported_layer
from potstill.export.part_times import part_times_ms, taken_apart
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.data import Dataset
from potstill.pipeline.quantization import Quantization
from potstill.pipeline.side_by_side import Part, SideBySide
from potstill.stages.pruning.layer_times import placed_as
from tests.support.hearing import Hearing

LARGE = Part(nn.Conv2d(32, 32, 5, padding=2), (1, 32, 24, 24))
SMALL = Part(nn.Linear(8, 4), (1, 8))


class TestPart:
    def test_is_known_by_class_settings_sizes_and_shape(self) -> None:
        keys = {
            part.key
            for part in (
                LARGE,
                SMALL,
                Part(nn.Linear(8, 4, bias=False), (1, 8)),
                Part(nn.Linear(8, 4), (3, 8)),
                Part(nn.Conv2d(32, 32, 5, padding=2, stride=2), (1, 32, 24, 24)),
            )
        }
        assert len(keys) == 5
        assert Part(nn.Linear(8, 4), (1, 8)).key == SMALL.key

    def test_without_memory_is_drawn_when_it_runs(self) -> None:
        with torch.device("meta"):
            part = Part(nn.Linear(8, 4), (1, 8))
        (output,) = SideBySide([part])(part.inputs(3))
        assert output.shape == (3, 4)
        assert torch.isfinite(output).all()
        assert part.key == SMALL.key


def operators(quantization: Quantization | None) -> list[list[str]]:
    """Of each part's own model."""
    inputs = {"a": LARGE.inputs(2), "b": SMALL.inputs(2)}
    whole = exported_layer(SideBySide([LARGE, SMALL]), inputs, quantization)
    return [[node.op_type for node in model.graph.node] for model in taken_apart(whole)]


class TestPartTimes:
    def test_of_several_parts_are_each_their_own(self) -> None:
        assert operators(None) == [["Conv"], ["Gemm"]]
        times = part_times_ms(OnnxRuntimeTarget(), [LARGE, SMALL], None)
        assert all(ms > 0 for ms in times)

    def test_of_a_quantized_model_are_those_of_int8_engines(self) -> None:
        placed = placed_as(Quantization(weight_bits=7, weights=(), activations={}))
        quantization = placed(SideBySide([LARGE, SMALL]), {"a": LARGE.inputs(2), "b": SMALL.inputs(2)})
        assert quantization.weights == ("parts.0.weight", "parts.1.weight")
        for layer, found in zip(("Conv", "Gemm"), operators(quantization), strict=True):
            assert found.count("QuantizeLinear") == 2
            assert layer in found
        assert all(ms > 0 for ms in part_times_ms(OnnxRuntimeTarget(), [SMALL], placed))


class TestTable:
    def test_what_was_measured_is_not_measured_again(self, data: Dataset, tmp_path: Path) -> None:
        first, second = Hearing(), Hearing()
        measured = TargetBench(OnnxRuntimeTarget(), data, tmp_path, first).part_ms([SMALL, SMALL], None)
        assert measured[0] == measured[1]
        assert TargetBench(OnnxRuntimeTarget(), data, tmp_path, second).part_ms([SMALL], None) == measured[:1]
        assert [line for line in first.said if "times 1 layers" in line]
        assert second.said == []

    def test_is_another_one_for_other_threads_precision_and_batch(self, tmp_path: Path) -> None:
        def folder(precision: str = "fp32", **settings: int | tuple[int, ...]) -> Path | None:
            target = OnnxRuntimeTarget.model_validate(settings)
            return LatencyTable.of(tmp_path, target, precision, print).folder

        usual = folder()
        assert usual == folder(batch=(1, 32))
        assert len({usual, folder("int8"), folder(threads=2), folder(batch=(8,))}) == 4

    @pytest.mark.parametrize("damage", ["{", '{"measured_as": {}, "parts": {}}'])
    def test_a_damaged_file_is_said_and_left_out(self, damage: str, tmp_path: Path) -> None:
        heard = Hearing()
        table = LatencyTable.of(tmp_path, OnnxRuntimeTarget(), "fp32", heard.say)
        table.add({SMALL: 0.25})
        assert table.known() == {SMALL.key: 0.25}
        (file,) = tmp_path.rglob("*.json")
        file.write_text(damage)
        assert table.known() == {}
        assert [line for line in heard.said if f"{file}: is no part of this latency table" in line]

    def test_without_a_folder_nothing_is_kept(self) -> None:
        table = LatencyTable.of(None, OnnxRuntimeTarget(), "fp32", print)
        table.add({SMALL: 0.25})
        assert table.known() == {}
