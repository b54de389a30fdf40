"""How far the verdicts on latency can be trusted on this machine: found by comparisons whose answer is known."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from .engine import Array
from .latency import Contestant, in_turns
from .machine import machine_facts
from .measurement import Comparison, Interval, Machine, Value, wilson_interval
from .resampling import compared
from .target import EngineFile

SLOWDOWN = 0.05
MAX_FALSE_ALARMS, MIN_POWER = 0.05, 0.8
"""What is asked of the verdicts."""

CHANNELS, SIZE, LAYERS = 16, 32, 4
"""Of the small engine: about 9 million multiply-accumulates, a fifth of a millisecond."""


class Rate(Value):
    """How often something happened."""

    hits: int
    count: int

    @property
    def share(self) -> float:
        """Of all."""
        return self.hits / self.count

    @property
    def interval(self) -> Interval:
        """Wilson's, 95 %."""
        return wilson_interval(self.hits, self.count)


class SelfCheck(Value):
    """What comparisons with a known answer came to."""

    version: Literal[1] = 1
    kind: Literal["self-check"] = "self-check"
    started: datetime
    seconds: float
    machine: Machine
    engine: str
    false_alarms: Rate
    """Of comparisons of an engine with itself: those that ended with "faster" or "slower"."""
    found: Rate
    """Of comparisons with the engine whose runs take 5 % longer: those that ended with "slower"."""
    same_ratios: tuple[float, ...]
    """Of each comparison of the engine with itself; 1 would be right."""
    slowed_ratios: tuple[float, ...]
    """Of each comparison with the longer one; 1 / 1.05 would be right."""
    turns: tuple[int, ...]
    """That each comparison took."""

    @property
    def passed(self) -> bool:
        """Whether at most 5 % were false alarms and at least 80 % were found."""
        return self.false_alarms.share <= MAX_FALSE_ALARMS and self.found.share >= MIN_POWER


def self_check(file: EngineFile, inputs: Mapping[str, Array], comparisons: int, done: Callable[[], None]) -> SelfCheck:
    """Time an engine beside itself, and beside itself with 5 % more work in each run, `comparisons` times each.

    All three take turns, just as two engines do that are compared: each time in new processes, as long and as often as
    `latency.in_turns` decides. The work that is added is a counted loop, as long as 5 % of the engine's p50 in the same
    process. `done` is called after each of them.
    """
    began = datetime.now(UTC)
    same: list[Comparison] = []
    slowed: list[Comparison] = []
    for _ in range(comparisons):
        contestants = [Contestant(file, {1: inputs}, longer_by) for longer_by in (0.0, 0.0, SLOWDOWN)]
        baseline, itself, longer = in_turns(contestants).blocks[1]
        same.append(compared(1, baseline, itself))
        slowed.append(compared(1, baseline, longer))
        done()
    return SelfCheck(
        started=began,
        seconds=(datetime.now(UTC) - began).total_seconds(),
        machine=machine_facts(),
        engine=f"{file.path.name} ({file.target.label})",
        false_alarms=_rate(same, ("faster", "slower")),
        found=_rate(slowed, ("slower",)),
        same_ratios=tuple(each.ratio for each in same),
        slowed_ratios=tuple(each.ratio for each in slowed),
        turns=tuple(each.turns or 0 for each in same),
    )


def _rate(comparisons: Sequence[Comparison], verdicts: tuple[str, ...]) -> Rate:
    return Rate(hits=sum(each.verdict in verdicts for each in comparisons), count=len(comparisons))


def small_engine(folder: Path) -> tuple[Path, dict[str, Array]]:
    """An ONNX file of four small convolutions, and an input (1, 16, 32, 32) for it."""
    file = convolutions(folder / "small.onnx", LAYERS, CHANNELS)
    draws = np.random.default_rng(1)
    return file, {"input": draws.standard_normal((1, CHANNELS, SIZE, SIZE)).astype(np.float32)}


def convolutions(file: Path, layers: int, channels: int) -> Path:
    """An ONNX file of 3×3 convolutions with ReLUs, all on (1, channels, 32, 32), with weights of a fixed seed."""
    from onnx import NodeProto, TensorProto
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
    from onnx.numpy_helper import from_array

    draws = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    for layer in range(layers):
        values = draws.standard_normal((channels, channels, 3, 3)) / np.sqrt(4.5 * channels)
        weights.append(from_array(values.astype(np.float32), f"weight{layer}"))
        names = [f"relu{layer - 1}" if layer else "input", f"weight{layer}"]
        nodes.append(make_node("Conv", names, [f"conv{layer}"], f"conv{layer}", pads=[1, 1, 1, 1]))
        nodes.append(make_node("Relu", [f"conv{layer}"], [f"relu{layer}"], f"relu{layer}"))
    shape = (1, channels, SIZE, SIZE)
    ends = [make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", f"relu{layers - 1}")]
    graph = make_graph(nodes, "convolutions", ends[:1], ends[1:], weights)
    model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString(deterministic=True))
    return file
