"""Facts about the ranges that calibration methods choose, against slow readings of their formulas."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.quantization import ActivationRange, Calibration
from potstill.stages.quantization.ranges import NUM_BINS, Histogram, chosen_range, divergence, squared_error
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]
Method = Literal["min_max", "percentile", "mse", "entropy"]
CLIPPING: list[Method] = ["percentile", "mse", "entropy"]


def histogram_of(values: Tensor) -> Histogram:
    histogram = Histogram.empty(float(values.min()), float(values.max()))
    for part in values.chunk(3):
        histogram.add(part)
    return histogram


def heavy_tailed(*, signed: bool) -> Tensor:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values[:20] *= 30
    return values if signed else values.abs()


def rounded(values: Tensor, low: float, high: float) -> Tensor:
    grid = ActivationRange.spanning(low, high)
    codes = torch.clamp(torch.round(values / grid.scale) + grid.zero_point, 0, 255)
    return (codes - grid.zero_point) * grid.scale


class TestRanges:
    @pytest.mark.parametrize("method", get_args(Method))
    @pytest.mark.parametrize("values", [torch.zeros(10), torch.full((10,), 3.0), -torch.arange(1.0, 9.0)], ids=str)
    def test_always_hold_zero(self, method: Method, values: Tensor) -> None:
        low, high = chosen_range(histogram_of(values), Calibration(method=method))
        assert low <= 0 <= high
        assert low < high

    def test_min_max_is_the_extremes(self) -> None:
        values = heavy_tailed(signed=True)
        chosen = chosen_range(histogram_of(values), Calibration(method="min_max"))
        assert chosen == (float(values.min()), float(values.max()))

    @pytest.mark.parametrize("signed", [True, False])
    def test_percentiles_are_those_of_the_values(self, signed: bool) -> None:
        values = heavy_tailed(signed=signed)
        histogram = histogram_of(values)
        low, high = chosen_range(histogram, Calibration(method="percentile", percentile=99))
        bin_width = (histogram.high - histogram.low) / NUM_BINS
        assert high == pytest.approx(float(values.quantile(0.99)), abs=bin_width)
        assert low == (pytest.approx(float(values.quantile(0.01)), abs=bin_width) if signed else 0)

    def test_the_squared_error_is_that_of_the_values_themselves(self) -> None:
        values = heavy_tailed(signed=True)
        for low, high in [(-5.0, 5.0), (-80.0, 60.0), (-1.0, 20.0)]:
            slow = float((rounded(values, low, high) - values).square().mean())
            assert squared_error(histogram_of(values), low, high) == pytest.approx(slow, rel=0.05)

    def test_the_divergence_is_that_of_the_formula(self) -> None:
        values = heavy_tailed(signed=False)
        histogram = histogram_of(values)
        counts, centers = histogram.counts.numpy().copy(), histogram.centers.numpy()
        counts[0] = counts[1]  # the bin of zero
        high = histogram.high / 2
        inside = [count for count, center in zip(counts, centers, strict=True) if center <= high]
        p = list(inside)
        p[-1] += sum(count for count, center in zip(counts, centers, strict=True) if center > high)
        q = [0.0] * len(inside)
        for level in range(256):
            of_level = [bin for bin in range(len(inside)) if bin * 256 // len(inside) == level]
            held = [bin for bin in of_level if inside[bin] > 0]
            for bin in held:
                q[bin] = sum(inside[each] for each in of_level) / len(held)
        q = [max(value, 1.0) if p[bin] > 0 else 0.0 for bin, value in enumerate(q)]
        p_sum, q_sum = sum(p), sum(q)
        slow = sum(a / p_sum * math.log(a / p_sum / (b / q_sum)) for a, b in zip(p, q, strict=True) if a > 0)
        assert divergence(histogram, 0.0, high) == pytest.approx(slow)

    @pytest.mark.parametrize("method", ["percentile", "entropy"])
    @pytest.mark.parametrize("signed", [True, False])
    def test_far_values_are_clipped_and_the_others_rounded_finer(self, method: Method, signed: bool) -> None:
        values = heavy_tailed(signed=signed)
        low, high = chosen_range(histogram_of(values), Calibration(method=method, percentile=99.9))
        assert high < 0.5 * float(values.max())
        assert (low > 0.5 * float(values.min())) if signed else low == 0
        most = values.sort().values[200:-200]
        extremes = (min(float(values.min()), 0.0), float(values.max()))
        error, widest = (float((rounded(most, *ends) - most).square().mean()) for ends in ((low, high), extremes))
        assert error < 0.5 * widest

    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_zeros_behind_a_relu_do_not_narrow_the_range(self, share: float) -> None:
        values = heavy_tailed(signed=False)
        alone, method = histogram_of(values), Calibration(method="entropy")
        zeros = torch.zeros(int(len(values) * share / (1 - share)), dtype=torch.float64)
        assert chosen_range(histogram_of(torch.cat([values, zeros])), method) == chosen_range(alone, method)

    def test_mse_is_the_least_error_of_any_range_tried_by_hand(self) -> None:
        values = heavy_tailed(signed=False)
        histogram = histogram_of(values)
        best = squared_error(histogram, *chosen_range(histogram, Calibration(method="mse")))
        others = [squared_error(histogram, 0.0, high) for high in np.linspace(1, float(values.max()), 200)]
        assert best <= 1.05 * min(others)

    @pytest.mark.parametrize("method", get_args(Method))
    @pytest.mark.parametrize("signed", [True, False])
    def test_symmetric_grids_hold_zero_in_the_middle_and_the_largest_code_at_the_farther_end(
        self, method: Method, signed: bool
    ) -> None:
        histogram = histogram_of(heavy_tailed(signed=signed) + 0.5 * signed)
        low, high = chosen_range(histogram, Calibration(method=method), "symmetric")
        grid = ActivationRange.spanning(low, high, "symmetric")
        assert grid.zero_point == 128
        assert 127 * grid.scale == pytest.approx(max(-low, high))

    @pytest.mark.parametrize("signed", [True, False])
    def test_the_symmetric_range_of_least_error_is_that_of_any_tried_by_hand(self, signed: bool) -> None:
        histogram = histogram_of(heavy_tailed(signed=signed))
        best = squared_error(histogram, *chosen_range(histogram, Calibration(method="mse"), "symmetric"), "symmetric")
        others = [squared_error(histogram, -high, high, "symmetric") for high in np.linspace(1, histogram.high, 200)]
        assert best <= 1.05 * min(others)

    @pytest.mark.parametrize("percentile", [50, 0, 101])
    def test_a_percentile_that_means_nothing_is_refused(self, percentile: float) -> None:
        with pytest.raises(ValidationError):
            Calibration(method="percentile", percentile=percentile)


class TestStage:
    @pytest.mark.parametrize("method", CLIPPING)
    def test_a_chosen_range_holds_through_training(
        self, method: Method, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        def grids(method: Method, epochs: int) -> dict[str, Any]:
            recovery = Recovery(epochs=epochs, knowledge=())
            stage = Quantize(calibration=Calibration(method=method, percentile=99), recover=recovery)
            quantized = stage.run(new_artifact(), new_context(step=f"{method}-{epochs}")).quantization
            assert quantized is not None
            assert quantized.calibration.method == method
            return quantized.activations

        before, after, followed = grids(method, 0), grids(method, 1), grids("min_max", 0)
        assert before == after
        assert before != followed
