"""Inputs for an engine of which only its description is known."""

import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from ..pipeline.errors import UsageError
from .engine import Array, EngineDescription

SEED = 0

Shape = tuple[int, ...]


def shapes_of(
    file: str, description: EngineDescription, *, batch: int | None, given: Mapping[str, Shape]
) -> dict[str, Shape]:
    """A shape for each input: `given`, or what the engine declares, a free first dimension being the batch.

    Without a `batch`, a free first dimension is what `given` says, or else 1. Raises UsageError that names every
    dimension that is left open, and every contradiction; `file` is how messages call the engine.
    """
    problems: list[str] = [] if batch is None else list(_fixed_batch(description, batch))
    shapes: dict[str, Shape] = {}
    for name, declared in description.inputs.items():
        if name in given and not _fits(given[name], declared):
            problems.append(f"{name} is ({_written(declared)}), and --shape gives it ({_written(given[name])})")
            continue
        shape = list(given.get(name, declared))
        if declared and declared[0] is None and (batch is not None or shape[0] is None):
            shape[0] = batch or 1
        if any(size is None for size in shape):
            sizes = ",".join("?" if size is None else str(size) for size in shape)
            problems.append(f"{name} is ({_written(declared)}): say its sizes with --shape {name}={sizes}")
        shapes[name] = tuple(size for size in shape if size is not None)
    if problems:
        raise UsageError(f"{file}: {'; '.join(problems)}")
    return shapes


def _fits(shape: Shape, declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(
        size in (None, given) for given, size in zip(shape, declared, strict=True)
    )


def _fixed_batch(description: EngineDescription, batch: int) -> Iterator[str]:
    firsts = {shape[0] for shape in description.inputs.values() if shape}
    if firsts and None not in firsts and firsts != {batch}:
        fixed = ", ".join(f"{name} ({_written(shape)})" for name, shape in description.inputs.items())
        yield f"--batch {batch}: no input has a free first dimension: {fixed}"


def random_inputs(description: EngineDescription, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """Normally distributed numbers for floats; for whole numbers zeros and ones, which are valid tokens and masks.

    The same name, shape and type always get the same values, whatever other inputs there are.
    """
    return {name: _drawn(name, shape, description.input_types[name]) for name, shape in shapes.items()}


def _drawn(name: str, shape: Shape, type_name: str) -> Array:
    draws = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    try:
        dtype = np.dtype(type_name)
    except TypeError as error:
        raise UsageError(f"input {name} is of the type {type_name}: give it with --inputs") from error
    if dtype.kind == "f":
        return draws.standard_normal(shape).astype(dtype)
    return draws.integers(0, 2, size=shape).astype(dtype)


def _written(shape: tuple[object, ...]) -> str:
    return ", ".join("any" if size is None else str(size) for size in shape)
