"""What is quantized in a model: its tensors by name, and the grids they were given.

The quantizers' arithmetic is that of ONNX Runtime's CPU kernels. In the scheme `int8` activations are uint8, affine,
one scale a tensor; weights are int8, symmetric, one scale an output channel. In `int8_weights` and `int4_weights` the
weights of linear layers alone are quantized, affine, one scale a group of inputs of each output.
"""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from inspect import Parameter, signature
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, fx, nn

from .errors import ModelError
from .front_end import keep_front_end
from .lengths import example_pair, free_inputs
from .written_out import write_out

ACTIVATION_LEVELS = 255

SYMMETRIC_ZERO_POINT = 128
"""Of every activation on symmetric grids: a uint8 code less 128 is the int8 code of the same number on zero point 0."""
LARGEST_SIGNED_CODE = 127

Grids = Literal["affine", "symmetric"]

CalibrationMethod = Literal["min_max", "percentile", "mse", "entropy"]

Scheme = Literal["int8", "int8_weights", "int4_weights"]
"""What is rounded, and the precision of the engines that this gives: activations and weights, or weights alone."""


class ActivationRange(BaseModel):
    """One activation's uint8 grid: real value = scale · (code − zero_point)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: Annotated[float, Field(gt=0)]
    zero_point: Annotated[int, Field(ge=0, le=ACTIVATION_LEVELS)]

    @classmethod
    def spanning(cls, low: float, high: float, grids: Grids = "affine") -> "ActivationRange":
        """The grid from `low`, at most 0, to `high`, at least 0; a symmetric one reaches as far to both sides."""
        if grids == "symmetric":
            scale = max(-low, high) / LARGEST_SIGNED_CODE
            return cls(scale=max(scale, torch.finfo(torch.float32).eps), zero_point=SYMMETRIC_ZERO_POINT)
        scale = max((high - low) / ACTIVATION_LEVELS, torch.finfo(torch.float32).eps)
        return cls(scale=scale, zero_point=min(max(round(-low / scale), 0), ACTIVATION_LEVELS))


class Calibration(BaseModel):
    """How activations' ranges are found on real samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: CalibrationMethod = "min_max"
    """`min_max`: the mean of the batches' extremes, which go on to follow the batches while the model trains.
    `percentile`, `mse` and `entropy` clip what lies far out, and hold the range through the training."""
    samples: Annotated[int, Field(ge=1)] = 256
    """Training samples looked at, without augmentation."""
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    """For `percentile`: how many per cent of the values lie below the range's upper end, and above its lower one."""


class Quantization(BaseModel):
    """Which tensors are quantized, and on which grid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: Scheme = "int8"
    weight_bits: Literal[4, 7, 8]
    """7 keeps weight codes within ±63, so that kernels without VNNI cannot saturate: 2 · 255 · 63 < 2^15."""
    group_size: int | None = None
    """How many inputs of an output share a scale, where the weights alone are quantized."""
    weights: tuple[str, ...]
    """Parameters by name; their scales follow from their values unless `weight_scales` has them."""
    activations: dict[str, ActivationRange]
    """Grids by tensor name, as `tensor_names` gives them."""
    calibration: Calibration = Calibration()
    """How the grids were found, and are found again where a later stage changes the model."""
    learn_steps: bool = False
    """Whether grids are parameters while the model trains."""
    weight_scales: dict[str, tuple[float, ...]] = Field(default_factory=dict[str, tuple[float, ...]])
    """Learned scales of weights by name, one an output channel."""
    float_layers: tuple[str, ...] = ()
    """Paths of modules that are left in float, with all that is inside them."""
    grids: Grids = "affine"
    """`affine`: each activation's grid spans its values. `symmetric`: every zero point is in the middle, so that int8
    with zero point 0 holds the same numbers; values that are never negative have half of the codes."""
    shared: dict[str, str] = Field(default_factory=dict[str, str])
    """Tensors that only move or pick another one's values (flatten, max pooling) and so lie on its grid, by name."""


def capture(model: nn.Module, inputs: Mapping[str, Tensor]) -> fx.GraphModule:
    """The model's eval-mode graph over aten operators, with a dynamic batch, its attention and SiLUs written out.

    A front end is one node of it, whose operators do not show.

    Raises ModelError when torch.export cannot follow the model.
    """
    shapes = dynamic_shapes(model, inputs)
    example = tuple(example_pair(inputs))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecation notices while it traces
            exported = torch.export.export(deepcopy(model).eval(), example, dynamic_shapes=shapes)
            graph = exported.module(check_guards=False)
    except Exception as error:
        raise ModelError(
            f"torch.export cannot capture this model: {str(error).splitlines()[0]}\n"
            "Mend: no Python branches on tensor values and no batch size written into the code; "
            "`torch.export.export(model, inputs)` shows the whole message."
        ) from error
    keep_front_end(graph, model)
    write_out(graph)
    return graph


def dynamic_shapes(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """torch.export's `dynamic_shapes` for a model called positionally: every input's first dimension is free.

    So is the second one of inputs of free length.
    """
    free, dynamic = free_inputs(inputs), torch.export.Dim.DYNAMIC
    shapes = tuple({0: dynamic, 1: dynamic} if name in free else {0: dynamic} for name in inputs)
    takes_any_number = any(
        parameter.kind is Parameter.VAR_POSITIONAL for parameter in signature(model.forward).parameters.values()
    )
    return (shapes,) if takes_any_number else shapes


def tensor_names(graph: fx.GraphModule) -> dict[fx.Node, str]:
    """A name for every tensor of a captured graph that depends on the model's structure, not on the tracing.

    Parameters keep their own names; an operator's output is called by its module and operator, such as
    ``layer1.0.conv1:conv2d``; a second one in the same module gets ``#1``; inputs are ``input:`` and their position.
    """
    names: dict[fx.Node, str] = {}
    seen: dict[str, int] = {}
    num_inputs = 0
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            names[node] = f"input:{num_inputs}"
            num_inputs += 1
        elif node.op == "get_attr":
            names[node] = str(node.target)
        elif node.op == "call_function":
            base = f"{module_path(node)}:{operator_name(node)}"
            repeat = seen.get(base, 0)
            seen[base] = repeat + 1
            names[node] = f"{base}#{repeat}" if repeat else base
    return names


def module_path(node: fx.Node) -> str:
    """The path of the module whose forward made the node; empty for the model itself."""
    stack = cast(dict[str, tuple[str, Any]], node.meta.get("nn_module_stack") or {})
    return list(stack.values())[-1][0] if stack else ""


def operator_name(node: fx.Node) -> str:
    """The aten operator's plain name, such as ``conv2d``; empty for nodes that call none."""
    if node.op != "call_function":
        return ""
    return str(getattr(node.target, "__name__", node.target)).split(".")[0].rstrip("_")
