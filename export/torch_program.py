"""What PyTorch runs as an engine, what it takes and in which precision; importing it imports torch."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..pipeline.errors import ExportError
from ..pipeline.lengths import free_inputs
from .engine import Array

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TensorType(BaseModel):
    """An input or output of an engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int | None, ...]
    """None is the free batch, or a free length."""
    dtype: str
    """As NumPy names it."""

    def __str__(self) -> str:
        return f"{self.dtype} ({_written(self.shape)})"


class Signature(BaseModel):
    """What an engine takes and gives, as its file says it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str
    inputs: dict[str, TensorType]
    """In the order in which the model takes them."""
    output: str
    output_type: TensorType

    @classmethod
    def of(cls, model: nn.Module, inputs: Mapping[str, Tensor], precision: str, output: str) -> Self:
        """Of a model that takes these inputs and gives float32; runs it once."""
        with torch.inference_mode():
            given = cast(Tensor, model(*inputs.values()))
        free = free_inputs(inputs)
        types = {name: _type_of(tensor, free=2 if name in free else 1) for name, tensor in inputs.items()}
        return cls(precision=precision, inputs=types, output=output, output_type=_type_of(given))


class InPrecision(nn.Module):
    """A copy of a model with its weights and floating-point inputs in another type; its outputs are float32."""

    def __init__(self, model: nn.Module, precision: str, *, channels_last: bool = False) -> None:
        super().__init__()
        self.dtype = DTYPES[precision]
        self.model = deepcopy(model).eval().to(self.dtype).requires_grad_(False)
        if channels_last:
            for parameter in self.model.parameters():
                if parameter.ndim == 4:
                    # A convolution gives its output in the format of its weight, so that no input need be converted.
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Integers stay as they are."""
        cast_inputs = (each.to(self.dtype) if each.is_floating_point() else each for each in inputs)
        return cast(Tensor, self.model(*cast_inputs)).float()


@dataclass(frozen=True)
class Program:
    """What the file of an engine holds, loaded."""

    signature: Signature
    call: Callable[[Sequence[Tensor]], Tensor]
    """From the inputs on the device, in the signature's order, to the output there."""
    operators: Callable[[Sequence[Tensor]], Mapping[str, int]]
    """How many of each a run with such inputs calls."""
    module: nn.Module | None = None
    """Whose parts a profile can tell apart; None for a program that is compiled."""


def demand_fitting(file: Path, wanted: Mapping[str, TensorType], inputs: Mapping[str, Array]) -> None:
    """Raise ExportError unless names, types and shapes of the inputs are those that the engine takes."""
    if set(inputs) != set(wanted):
        raise ExportError(f"{file} takes the inputs {', '.join(wanted)}; given were {', '.join(inputs) or 'none'}")
    for name, array in inputs.items():
        shape = wanted[name].shape
        fits = len(shape) == array.ndim and all(
            size in (None, given) and given > 0 for size, given in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype != wanted[name].dtype:
            raise ExportError(
                f"{file}: input {name} takes {wanted[name]}; given was {array.dtype} ({_written(array.shape)})"
            )


def operators_called(model: nn.Module, inputs: Sequence[Tensor]) -> Counter[str]:
    """How often a run of an eager model calls each aten operator."""
    counting = _Counting()
    with counting:
        model(*inputs)
    return counting.called


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType] - untyped in torch
        self.called: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called[str(func.overloadpacket.__name__)] += 1
        return func(*args, **(kwargs or {}))


def brief(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:500]}"


def cast_hint(error: BaseException, precision: str) -> str:
    """What most probably went wrong where a model that was cast meets values of two types."""
    if precision == "fp32" or "dtype" not in str(error):
        return ""
    return (
        "\nMend: the model's own code makes values of another type than its inputs', such as by `.float()` or "
        f"`torch.zeros(n)`; with `.to(x.dtype)` and `x.new_zeros(n)` it runs in {precision}, too"
    )


def _type_of(tensor: Tensor, *, free: int = 1) -> TensorType:
    """Of which the first so many dimensions are free."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorType(shape=(*[None] * free, *tensor.shape[free:]), dtype=dtype)


def _written(shape: Sequence[int | None]) -> str:
    return ", ".join("any" if size is None else str(size) for size in shape)
