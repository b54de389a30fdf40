"""How long parts of a model take as engines of their own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from torch import Tensor

from ..pipeline.quantization import Quantization
from ..pipeline.side_by_side import Part, SideBySide
from .latency import medians_ms
from .onnx_file import exported_layer
from .parity import numpy_inputs
from .target import FLOAT, INT8, OnnxTarget

if TYPE_CHECKING:
    from onnx import ModelProto

Placed = Callable[[SideBySide, Mapping[str, Tensor]], Quantization]
"""Where the quantizers of parts go."""

PARTS_AT_ONCE = 64
WEIGHTS_AT_ONCE = 32_000_000
"""Elements of weights in one export, 128 MB; a larger part is exported alone."""


def part_times_ms(target: OnnxTarget, parts: Sequence[Part], placed: Placed | None) -> list[float]:
    """p50 of each part's engine for the target at its first batch size, timed in turns in one process.

    In float, or in int8 as `placed` says. torch needs about a second for an export whatever is in it, so many parts are
    exported at once and taken apart again. Raises ExportError where the runtime refuses one.
    """
    times: list[float] = []
    for chunk in _chunks(parts):
        inputs = {f"part_{number}": part.inputs(target.batch[0]) for number, part in enumerate(chunk)}
        together = SideBySide(chunk)
        quantization = None if placed is None else placed(together, inputs)
        precision = FLOAT if quantization is None else INT8
        with TemporaryDirectory(prefix="potstill-parts-") as scratch:
            files: list[Path] = []
            for number, model in enumerate(taken_apart(exported_layer(together, inputs, quantization))):
                folder = Path(scratch) / str(number)
                folder.mkdir()
                files.append(target.build(model, precision, folder))
            times += medians_ms(target, files, [numpy_inputs({name: values}) for name, values in inputs.items()])
    return times


def _chunks(parts: Sequence[Part]) -> Iterator[list[Part]]:
    chunk: list[Part] = []
    weights = 0
    for part in parts:
        own = part.num_weights
        if chunk and (len(chunk) == PARTS_AT_ONCE or weights + own > WEIGHTS_AT_ONCE):
            yield chunk
            chunk, weights = [], 0
        chunk.append(part)
        weights += own
    if chunk:
        yield chunk


def taken_apart(model: "ModelProto") -> "Iterator[ModelProto]":
    """The model of each part: what its output is computed from."""
    from onnx.utils import Extractor

    extractor = Extractor(model)
    for source, output in zip(model.graph.input, model.graph.output, strict=True):
        yield extractor.extract_model([source.name], [output.name])
