"""Facts about the diagnosis of an engine that did not get faster."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from potstill.export.diagnosis import diagnosis
from potstill.export.measurement import Audit, LayerPrecision, OperatorTime
from potstill.export.onnx_file import exported_layer
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget

CONV = OperatorTime(layer="conv1", operator="Conv", ms=0.4)


class TestDiagnosis:
    def test_an_engine_like_the_one_before_has_nothing_to_explain(self) -> None:
        assert diagnosis([CONV], [CONV], {"conv1": 64}, None) == ()

    def test_time_spent_on_moving_values_is_named_with_its_share(self) -> None:
        reorder = OperatorTime(layer="", operator="ReorderInput", ms=0.4)
        sentence, more = diagnosis([CONV], [CONV, reorder], {"conv1": 64}, None)
        assert more == "2 operators run instead of 1, and each has a cost of its own"
        assert sentence.startswith("ReorderInput only move values")
        assert "50% of the time (0.4 ms, before 0 ms)" in sentence

    def test_moving_that_was_there_before_is_no_reason(self) -> None:
        reorder = OperatorTime(layer="", operator="ReorderInput", ms=0.4)
        assert diagnosis([CONV, reorder], [CONV, reorder], {"conv1": 64}, None) == ()

    def test_factors_are_set_against_the_layer_they_came_from(self) -> None:
        factors = [OperatorTime(layer=f"conv1.{part}", operator="Conv", ms=0.25) for part in range(3)]
        widths = {"conv1.0": 8, "conv1.1": 8, "conv1.2": 64}
        sentence, _ = diagnosis([CONV], factors, widths, None)
        assert sentence.startswith("`conv1` takes 0.75 ms, before 0.4 ms")
        assert "8 channels are fewer than kernels work on at once" in sentence

    def test_a_layer_inside_another_ones_name_is_not_its_factor(self) -> None:
        inner = OperatorTime(layer="conv1.relu", operator="Relu", ms=9.0)
        (only,) = diagnosis([CONV], [CONV, inner], {}, None)
        assert "conv1" not in only

    def test_a_difference_within_a_profiles_noise_is_no_reason(self) -> None:
        assert diagnosis([CONV], [CONV.model_copy(update={"ms": 0.46})], {"conv1": 64}, None) == ()

    def test_float_islands_come_with_the_audits_reason(self) -> None:
        layer = LayerPrecision(
            name="head", kind="Gemm", precision="float", macs=10, reason="its output is not quantized"
        )
        (sentence,) = diagnosis([CONV], [CONV], {}, Audit(layers=(layer,), int8_share=0.5, min_int8_share=None))
        assert "`head` (its output is not quantized)" in sentence

    def test_float_layers_between_stored_weights_are_no_islands(self) -> None:
        layer = LayerPrecision(name="conv", kind="Conv", precision="float", macs=10, reason="no linear layer")
        audit = Audit(layers=(layer,), precision="int4_weights", int8_share=0.5, min_int8_share=None)
        assert diagnosis([CONV], [CONV], {}, audit) == ()


class TestOperatorTimes:
    def test_every_layer_of_the_graph_that_runs_has_a_time(self, tmp_path: Path) -> None:
        target, inputs = OnnxRuntimeTarget(), torch.zeros(1, 3, 8, 8)
        layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
        file = target.build(exported_layer(layers, {"input": inputs}), "fp32", tmp_path)
        times = target.operator_times(file, {"input": np.zeros((1, 3, 8, 8), np.float32)})
        assert {"0", "3"} <= {each.layer for each in times}
        assert all(each.ms >= 0 for each in times)
        assert not list(Path().glob("*profile*"))
