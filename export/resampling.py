"""From timed blocks to intervals: which differences are there, and which may be chance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .measurement import P99_SAMPLES, Comparison, Interval, Latency, Verdict

DRAWS = 1000
SEED = 0
"""Of the bootstrap's draws, so that the same samples always give the same interval."""

NOISE_FLOOR = 0.03
"""A smaller difference of medians is no difference, however sure the interval is: memory is laid out anew in each
process, and that no resampling of its samples can see. Two processes that ran the very same file differed by up to
1.5 % where the interval was narrow (32 A/A runs on a busy machine, none with a verdict); this is twice that."""

OUTLIER_DEVIATIONS = 5.0
MAD_TO_DEVIATION = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""

Blocks = Sequence[NDArray[np.float64]]
"""Seconds of runs: one array a block of runs that followed each other without a pause."""


def compared(batch: int, baseline: Blocks, candidate: Blocks) -> Comparison:
    """Medians and their ratio with 95 % block bootstrap intervals.

    Block `i` of both engines was taken at nearly the same time, so blocks are drawn in pairs: what slows the machine
    for a while slows both, and cancels in the ratio. Runs within a block depend on each other, so blocks are drawn and
    not single runs (Künsch 1989).
    """
    assert len(baseline) == len(candidate) > 0
    blocks = len(baseline)
    draws = np.random.default_rng(SEED).multinomial(blocks, np.full(blocks, 1 / blocks), size=DRAWS)
    of_baseline, of_candidate = _medians(baseline, draws), _medians(candidate, draws)
    interval = _interval(of_baseline / of_candidate)
    ratio = float(np.median(np.concatenate(baseline)) / np.median(np.concatenate(candidate)))
    return Comparison(
        batch=batch,
        ratio=ratio,
        interval=interval,
        verdict=verdict_of(ratio, interval),
        baseline=_latency(batch, baseline, of_baseline),
        candidate=_latency(batch, candidate, of_candidate),
    )


def latency_of(batch: int, blocks: Blocks) -> Latency:
    """What blocks of one engine say of its latency."""
    draws = np.random.default_rng(SEED).multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=DRAWS)
    return _latency(batch, blocks, _medians(blocks, draws))


def verdict_of(ratio: float, interval: Interval) -> Verdict:
    """Faster or slower only where the interval leaves out 1 and the ratio is beyond the noise floor."""
    if ratio > 1 + NOISE_FLOOR and interval.low > 1:
        return "faster"
    if ratio < 1 / (1 + NOISE_FLOOR) and interval.high < 1:
        return "slower"
    return "no significant difference"


def _latency(batch: int, blocks: Blocks, bootstrapped_medians: NDArray[np.float64]) -> Latency:
    seconds = np.concatenate(blocks)
    median = float(np.median(seconds))
    deviation = MAD_TO_DEVIATION * float(np.median(np.abs(seconds - median)))
    mean = float(seconds.mean())
    p99 = float(np.quantile(seconds, 0.99)) * 1e3 if len(seconds) >= P99_SAMPLES else None
    interval = _interval(bootstrapped_medians)
    return Latency(
        batch=batch,
        samples=len(seconds),
        p50_ms=median * 1e3,
        p50_interval=Interval(low=interval.low * 1e3, high=interval.high * 1e3),
        p90_ms=float(np.quantile(seconds, 0.9)) * 1e3,
        p99_ms=p99,
        mean_ms=mean * 1e3,
        throughput=batch / mean,
        outliers=int((seconds > median + OUTLIER_DEVIATIONS * deviation).sum()),
    )


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(low=float(low), high=float(high))


def _medians(blocks: Blocks, draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """The median of all samples of the drawn blocks, for each row of `draws`: how often each block was drawn."""
    seconds = np.concatenate(blocks)
    block_of = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    order = np.argsort(seconds, kind="stable")
    # Sorted once, a draw's median is where the weights of the samples, summed up, pass one half.
    ordered, block_of = seconds[order], block_of[order]
    medians = np.empty(len(draws))
    rows = max(1, 1_000_000 // len(seconds))  # bounds the memory
    for start in range(0, len(draws), rows):
        cumulated = np.cumsum(draws[start : start + rows].astype(np.int32)[:, block_of], axis=1, dtype=np.int32)
        half = cumulated[:, -1:] / 2
        medians[start : start + rows] = ordered[np.argmax(cumulated >= half, axis=1)]
    return medians
