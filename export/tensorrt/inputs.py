"""Whether inputs fit an engine, and how many samples of them it takes at once."""

from collections.abc import Iterator, Mapping, Sequence

from ..engine import Array
from .manifest import TensorFacts


def input_problem(wanted: Mapping[str, TensorFacts], given: Mapping[str, Array]) -> str | None:
    """Why an engine cannot run on inputs, as the rest of a sentence about its file; None where it can.

    Sizes beyond a profile are no problem of the first dimension, which `batches` splits, where that is free.
    """
    if set(given) != set(wanted):
        return f"takes the inputs {', '.join(wanted)}; given were {', '.join(given) or 'none'}"
    for name, array in given.items():
        facts = wanted[name]
        fits = len(facts.shape) == array.ndim and all(
            size in (None, got) for size, got in zip(facts.shape, array.shape, strict=True)
        )
        if not fits or array.dtype.name != facts.dtype:
            expected = f"{facts.dtype} ({written(facts.shape)})"
            return f"takes {expected} for the input {name}; given was {array.dtype} ({written(array.shape)})"
        if array.size == 0:
            return f"cannot run on the input {name} of shape ({written(array.shape)}), which holds nothing"
        problem = _range_problem(name, facts, array.shape)
        if problem is not None:
            return problem
    sizes = {array.shape[0] for name, array in given.items() if is_batched(wanted[name])}
    if len(sizes) > 1:
        return f"takes as many samples of every input; given were {', '.join(map(str, sorted(sizes)))}"
    return None


def _range_problem(name: str, facts: TensorFacts, shape: Sequence[int]) -> str | None:
    if facts.least is None or facts.most is None:
        return None
    for position, (least, size, most) in enumerate(zip(facts.least, shape, facts.most, strict=True)):
        splits = position == 0 and is_batched(facts)
        if size < least or (size > most and not splits):
            return (
                f"was built for sizes from {least} to {most} in dimension {position} of the input {name}; given was "
                f"{size}. `batch` and `shapes` of the target say for which"
            )
    return None


def is_batched(facts: TensorFacts) -> bool:
    """Whether the first dimension is free, which then is that of the samples."""
    return bool(facts.shape) and facts.shape[0] is None


def largest_batch(inputs: Mapping[str, TensorFacts]) -> int | None:
    """How many samples the engine takes at once; None where that is not free."""
    found = [facts.most[0] for facts in inputs.values() if is_batched(facts) and facts.most is not None]
    return min(found) if found else None


def batches(inputs: Mapping[str, TensorFacts], given: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """The inputs in as few parts as the engine's profile allows, none larger than another by more than one."""
    most = largest_batch(inputs)
    count = next((len(array) for name, array in given.items() if is_batched(inputs[name])), None)
    if most is None or count is None or count <= most:
        yield dict(given)
        return
    parts = -(-count // most)
    for part in range(parts):
        low, high = part * count // parts, (part + 1) * count // parts
        yield {name: array[low:high] if is_batched(inputs[name]) else array for name, array in given.items()}


def written(shape: Sequence[int | None]) -> str:
    """A shape for people."""
    return ", ".join("any" if size is None else str(size) for size in shape)
