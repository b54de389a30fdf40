"""How TensorRT is to build an engine, as values: profiles from a recipe's batches, flags, limits."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ...pipeline.errors import ExportError
from ..measurement import Value
from ..notes import notes

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

HardwareCompatibility = Literal["none", "same_compute_capability", "ampere_plus"]
Range = tuple[int, int, int]
"""Least, usual and most."""


class ProfileShape(Value):
    """Between which shapes an input may lie, and for which the kernels are chosen."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]


class BuildPlan(Value):
    """Everything that the builder is told; the precision is in the graph, which is strongly typed."""

    profile: dict[str, ProfileShape]
    """By input; empty where no input has a free dimension."""
    tf32: bool
    """Whether products of float32 may be computed with inputs of ten bits."""
    sparse_weights: bool
    """Whether kernels are tried that skip the zeros of 2:4 sparse weights."""
    version_compatible: bool
    hardware_compatibility: HardwareCompatibility
    optimization_level: int
    workspace_bytes: int | None
    """What a kernel may use as scratch memory; None is all of the GPU's."""

    def in_words(self) -> tuple[str, ...]:
        """What may cost speed or change numbers."""
        told = {
            "products of float32 are computed in TF32, with inputs of ten bits": self.tf32,
            "kernels for 2:4 sparse weights were tried": self.sparse_weights,
            "built to run on later versions of TensorRT, which leaves it fewer kernels": self.version_compatible,
            f"built for {self.hardware_compatibility.replace('_', ' ')}, which leaves TensorRT fewer kernels": (
                self.hardware_compatibility != "none"
            ),
        }
        return tuple(words for words, holds in told.items() if holds)


def profile_of(model: "ModelProto", batches: Sequence[int], ranges: Mapping[str, Range]) -> dict[str, ProfileShape]:
    """The profile of every input; empty where all of them have fixed shapes.

    A free first dimension is the batch, from 1 to the largest of `batches`, best for the first. `ranges` has the other
    free dimensions, by their own names or by that of the input. Raises ExportError for a free dimension without a range
    and for a range that belongs to none.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    batch = (1, batches[0], max(batches))
    used: set[str] = set()
    found = {value.name: [*_dimensions(value, batch, ranges, used)] for value in inputs}
    unknown = [name for name in ranges if name not in used]
    if unknown:
        raise ExportError(
            f"`shapes` has {', '.join(unknown)}, which is no free dimension of the graph and no input with one; "
            f"it has {', '.join(_free(inputs)) or 'none but the batch'}"
        )
    if not _any_free(inputs):
        return {}
    return {
        name: ProfileShape(
            least=tuple(least for least, _, _ in dimensions),
            usual=tuple(usual for _, usual, _ in dimensions),
            most=tuple(most for _, _, most in dimensions),
        )
        for name, dimensions in found.items()
    }


def _dimensions(value: "ValueInfoProto", batch: Range, ranges: Mapping[str, Range], used: set[str]) -> Iterator[Range]:
    for position, dimension in enumerate(value.type.tensor_type.shape.dim):
        if dimension.HasField("dim_value"):
            yield dimension.dim_value, dimension.dim_value, dimension.dim_value
            continue
        key = dimension.dim_param if dimension.dim_param in ranges else value.name
        if key in ranges and (position or key == dimension.dim_param):
            used.add(key)
            yield ranges[key]
        elif position == 0:
            yield batch
        else:
            called = dimension.dim_param or value.name
            raise ExportError(
                f"dimension {position} of the input {value.name} is free, and TensorRT needs its range: give the "
                f"target `shapes: {{{called}: [1, 64, 128]}}`, the least, the usual and the largest size"
            )


def _free(inputs: "Sequence[ValueInfoProto]") -> Iterator[str]:
    for value in inputs:
        for position, dimension in enumerate(value.type.tensor_type.shape.dim):
            if position and not dimension.HasField("dim_value"):
                yield f"{dimension.dim_param or value.name} (of {value.name})"


def _any_free(inputs: "Sequence[ValueInfoProto]") -> bool:
    shapes = (value.type.tensor_type.shape for value in inputs)
    return any(not dimension.HasField("dim_value") for shape in shapes for dimension in shape.dim)


def is_sparse(model: "ModelProto") -> bool:
    """Whether `exported` marked layers as 2:4 sparse."""
    mark = json.loads(notes(model).get("sparsity", "null"))
    return mark is not None and mark["pattern"] == "2:4" and bool(mark["layers"])
