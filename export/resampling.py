"""From timed blocks to intervals: which differences are there, and which may be chance."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .measurement import P90_SAMPLES, P99_SAMPLES, WILSON_Z, Comparison, Interval, Latency, Ranked, Verdict

DRAWS = 1000
SEED = 0
"""Of the bootstrap's draws, so that the same samples always give the same interval."""

NOISE_FLOOR = 0.03
"""A smaller difference of medians is no difference, however sure the interval is: memory is laid out anew in each
process, and that no resampling of its samples can see. Two processes that ran the very same file differed by up to
1.5 % where the interval was narrow (32 A/A runs on a busy machine, and 45 in rounds of new processes); this is twice
that."""

TAIL = 0.025
"""What a 95 % interval leaves out on either side."""

OUTLIER_DEVIATIONS = 5.0
MAD_TO_DEVIATION = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""

PERCENTILES = (0.5, 0.9, 0.99)

Floats = NDArray[np.float64]
Blocks = Sequence[Floats]
"""Seconds of runs: one array a block of runs that followed each other without a pause."""


def compared(batch: int, baseline: Blocks, candidate: Blocks) -> Comparison:
    """Percentiles of both engines, and the ratio of their medians, with 95 % intervals.

    Block `i` of both engines was taken in the same turn: what slows the machine for a while slows both, and cancels in
    the ratio of their medians in that turn. The median of these ratios is what is given, for a turn in which only one
    of the two was disturbed is then one turn among many. Runs within a block depend on each other, so turns are what
    counts, and not runs.
    """
    assert len(baseline) == len(candidate) > 0
    logs = _turn_logs(baseline, candidate)
    of_median = _median_interval(logs)
    ratio, interval = (
        float(np.exp(np.median(logs))),
        Interval(low=math.exp(of_median.low), high=math.exp(of_median.high)),
    )
    return Comparison(
        batch=batch,
        ratio=ratio,
        interval=interval,
        verdict=verdict_of(ratio, interval),
        turns=len(baseline),
        baseline=latency_of(batch, baseline),
        candidate=latency_of(batch, candidate),
    )


def verdict_of(ratio: float, interval: Interval) -> Verdict:
    """Faster or slower only where the interval leaves out 1 and the ratio is beyond the noise floor."""
    if ratio > 1 + NOISE_FLOOR and interval.low > 1:
        return "faster"
    if ratio < 1 / (1 + NOISE_FLOOR) and interval.high < 1:
        return "slower"
    return "no significant difference"


def half_width(baseline: Blocks, candidate: Blocks) -> float:
    """Of the interval of the ratio, on logarithms: 0.01 is about one percent to either side."""
    interval = _median_interval(_turn_logs(baseline, candidate))
    return (interval.high - interval.low) / 2


def ranked(batch: int, blocks_of: Mapping[str, Blocks]) -> tuple[Ranked, ...]:
    """Engines by name that were timed in the same turns: that of the lowest p50 first, then by their ratio to it."""
    first = min(blocks_of, key=lambda name: float(np.median(np.concatenate(blocks_of[name]))))
    beside = {name: compared(batch, blocks_of[first], blocks) for name, blocks in blocks_of.items()}
    order = [first, *sorted(blocks_of.keys() - {first}, key=lambda name: (-beside[name].ratio, name))]
    return tuple(Ranked(target=name, comparison=beside[name]) for name in order)


def latency_of(batch: int, blocks: Blocks) -> Latency:
    """What blocks of one engine say of its latency; percentiles only where enough samples lie beyond them."""
    seconds = np.concatenate(blocks)
    median = float(np.median(seconds))
    deviation = MAD_TO_DEVIATION * float(np.median(np.abs(seconds - median)))
    mean = float(seconds.mean())
    p50, p90, p99 = (float(value) * 1e3 for value in np.quantile(seconds, PERCENTILES))
    of_p50, of_p90, of_p99 = percentile_intervals_ms(blocks)
    return Latency(
        batch=batch,
        samples=len(seconds),
        p50_ms=p50,
        p50_interval=of_p50,
        p90_ms=p90 if len(seconds) >= P90_SAMPLES else None,
        p90_interval=of_p90 if len(seconds) >= P90_SAMPLES else None,
        p99_ms=p99 if len(seconds) >= P99_SAMPLES else None,
        p99_interval=of_p99 if len(seconds) >= P99_SAMPLES else None,
        mean_ms=mean * 1e3,
        throughput=batch / mean,
        outliers=int((seconds > median + OUTLIER_DEVIATIONS * deviation).sum()),
    )


def percentile_intervals_ms(blocks: Blocks) -> tuple[Interval, Interval, Interval]:
    """95 % intervals of p50, p90 and p99, in milliseconds: by block bootstrap, for slow runs come in bursts.

    Order statistics take ten runs of one burst for ten events: of samples in such blocks they held the true p50 in 73
    of 100 cases, the block bootstrap in 94. But that sees nothing of the tail that lies between few samples, so for p90
    and p99 the farther end of both is taken (p99 of 1,000 samples: 92 of 100, not 88).
    """
    bootstrapped = _bootstrapped_percentiles(blocks, _draws(len(blocks)))
    ordered = np.sort(np.concatenate(blocks))
    p50 = _interval(bootstrapped[:, 0])
    p90 = _hull(_interval(bootstrapped[:, 1]), _order_interval(ordered, 0.9))
    p99 = _hull(_interval(bootstrapped[:, 2]), _order_interval(ordered, 0.99))
    return _in_ms(p50), _in_ms(p90), _in_ms(p99)


def _order_interval(ordered: Floats, share: float) -> Interval:
    """The two samples between which a percentile lies with 95 %, if samples are independent (binomial ranks)."""
    count = len(ordered)
    spread = WILSON_Z * np.sqrt(count * share * (1 - share))
    low, high = int(count * share - spread), int(np.ceil(count * share + spread))
    return Interval(low=float(ordered[max(0, low)]), high=float(ordered[min(count - 1, high)]))


def _hull(one: Interval, other: Interval) -> Interval:
    return Interval(low=min(one.low, other.low), high=max(one.high, other.high))


def _in_ms(seconds: Interval) -> Interval:
    return Interval(low=seconds.low * 1e3, high=seconds.high * 1e3)


def throughput_interval(batch: int, blocks: Blocks) -> Interval:
    """95 % block bootstrap interval of the samples a second that runs of `batch` samples come to."""
    draws = _draws(len(blocks))
    seconds = np.array([block.sum() for block in blocks])
    runs = np.array([len(block) for block in blocks])
    return _interval(batch * runs[draws].sum(axis=1) / seconds[draws].sum(axis=1))


def _turn_logs(baseline: Blocks, candidate: Blocks) -> Floats:
    """The logarithm of the ratio of both medians, for each turn."""
    pairs = zip(baseline, candidate, strict=True)
    return np.array([np.log(np.median(base) / np.median(new)) for base, new in pairs])


def _median_interval(values: Floats) -> Interval:
    """The 95 % interval of a median by the sign test: two order statistics, whatever the distribution.

    Of fewer than six values, all of them. Not by bootstrap: of A/A comparisons of 12 and of 24 turns on a busy machine
    (360 and 180), it left out 1 in 9 and in 11 of 100 cases, and these in 6 of 100.
    """
    count, ordered = len(values), np.sort(values)
    below, rank = 0.0, 0
    while (below := below + math.comb(count, rank) / 2**count) <= TAIL:
        rank += 1
    cut = max(0, rank - 1)
    return Interval(low=float(ordered[cut]), high=float(ordered[count - 1 - cut]))


def _draws(blocks: int) -> NDArray[np.int64]:
    """Which blocks each bootstrap sample consists of: (draws, blocks)."""
    return np.random.default_rng(SEED).integers(blocks, size=(DRAWS, blocks))


def _interval(values: Floats) -> Interval:
    low, high = np.quantile(values, (TAIL, 1 - TAIL))
    return Interval(low=float(low), high=float(high))


def _bootstrapped_percentiles(blocks: Blocks, draws: NDArray[np.int64]) -> Floats:
    """The percentiles of all samples of the drawn blocks: (draws, percentiles)."""
    seconds = np.concatenate(blocks)
    block_of = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    order = np.argsort(seconds, kind="stable")
    # Sorted once, a draw's percentile is where the weights of the samples, summed up, pass its share.
    ordered, block_of = seconds[order], block_of[order]
    weights = np.array([np.bincount(draw, minlength=len(blocks)) for draw in draws])
    found = np.empty((len(draws), len(PERCENTILES)))
    for number, weight in enumerate(weights):
        cumulated = np.cumsum(weight[block_of])
        found[number] = ordered[np.searchsorted(cumulated, np.multiply(PERCENTILES, cumulated[-1]))]
    return found
