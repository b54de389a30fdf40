"""References to models: what a recipe says in place of a network, and what a blueprint rebuilds one from."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, GetJsonSchemaHandler, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from torch import Tensor, nn

from .errors import ModelError
from .lengths import MASK, cut, lengths_of
from .networks.network import Network, rounded
from .python_reference import PythonReference
from .registry import OneOf, discovered

PYTHON_PATTERN = r"^.+\.py:[A-Za-z_]\w*$"
HF = "hf:"
"""Begins the short form of a model of transformers: the folder follows."""
LIBRARY_PATTERN = r"^(timm|torchvision):.+$"
"""The short form of another package's network."""
KEYS_SHOWN = 8
"""How many keys of a kind a message lists."""


def networks() -> dict[str, type[Network]]:
    """Every built-in family by name: one file in `networks/` each."""
    return discovered(f"{__package__}.networks", Network, "name")


class PythonModel(BaseModel, frozen=True, extra="forbid"):
    """A network that a function in the user's own file makes."""

    python: Annotated[str, Field(pattern=PYTHON_PATTERN)]
    """`file.py:function`; a relative path starts at the recipe's folder."""
    arguments: dict[str, bool | int | float | str] = Field(default_factory=dict[str, bool | int | float | str])
    """Given to the function by name; `num_classes` (or `num_outputs`, the same number), `input_shapes` and, for texts,
    `vocabulary` are given too where it has such parameters."""

    def reference(self, directory: Path = Path()) -> PythonReference:
        """The function; ModelError where its file is missing."""
        return PythonReference.parse(self.python, directory, ModelError)


class _TextSchema:
    """Adds the short forms, `file.py:function`, `hf:folder` and `timm:name`, to the JSON schema that editors read."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        mappings = handler(schema)
        patterns = (PYTHON_PATTERN, f"^{HF}.+", LIBRARY_PATTERN)
        texts = [{"type": "string", "pattern": pattern} for pattern in patterns]
        return {"anyOf": [*mappings.get("oneOf", [mappings]), *texts]}


def _mapping(value: Any) -> Any:
    if not isinstance(value, str):
        return _with_tuples(value)
    if value.startswith(HF):
        return {"name": "hf", "path": value.removeprefix(HF)}
    if re.fullmatch(LIBRARY_PATTERN, value):
        library, _, name = value.partition(":")
        return {"name": library, "model": name}
    return {"python": value}


def _with_tuples(value: Any) -> Any:
    """Once a validator has seen JSON as Python, strict validation takes no list for a tuple any more."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(each) for key, each in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list):
        return tuple(_with_tuples(each) for each in cast("list[Any]", value))
    return value


def _form(value: Any) -> str:
    if isinstance(value, PythonModel):
        return "python"
    return "python" if isinstance(value, Mapping) and "python" in value else "built in"


ModelReference = Annotated[
    Annotated[Network, OneOf("name", networks), Tag("built in")] | Annotated[PythonModel, Tag("python")],
    Discriminator(_form),
    BeforeValidator(_mapping),
    _TextSchema,
]
"""A network by name with its settings, another package's as `hf:folder`, `timm:name` or `torchvision:name`, or the
user's `file.py:function`, given alone or with `arguments`."""


def resolve(reference: Network | PythonModel, directory: Path) -> Network | PythonModel:
    """The reference with an absolute path, the same from every folder. ModelError where the file is missing."""
    if isinstance(reference, Network):
        return reference.resolved(directory)
    found = reference.reference(directory)
    return reference.model_copy(update={"python": str(found)})


def own_weights(reference: Network | PythonModel) -> Path | None:
    """The file of weights that the network is built with; None where they are drawn, or the user's own affair."""
    return reference.weights() if isinstance(reference, Network) else None


def source_of(reference: Network | PythonModel) -> str:
    """What a model is built by outside of potstill, for fingerprints; empty where there is nothing.

    It is the sha256 of the user's file and its siblings, or of a folder of files, or another package's version.
    """
    return reference.reference().sha256() if isinstance(reference, PythonModel) else reference.source()


def build(
    reference: Network | PythonModel,
    input_shapes: Mapping[str, tuple[int, ...]],
    num_classes: int,
    vocabulary: int = 0,
) -> nn.Module:
    """A new network with weights drawn from torch's global generator, which the caller seeds.

    `num_classes` outputs are asked of it: classes, numbers or channels of a map; 0 where nobody but the user knows.
    `vocabulary` counts the tokens of texts; 0 where samples are none.
    """
    if isinstance(reference, PythonModel):
        offered: dict[str, object] = {"input_shapes": dict(input_shapes)}
        if num_classes:
            offered |= {"num_classes": num_classes, "num_outputs": num_classes}
        if vocabulary:
            offered["vocabulary"] = vocabulary
        found = reference.reference()
        model = found.call(reference.arguments, offered)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"{found} returned a value of type {type(model).__name__}; it must return a torch.nn.Module"
            )
        return model
    if not num_classes:
        raise ModelError(
            f"{reference.name} must know how many outputs to give, and the data has no classes to count: name them "
            "with `classes`, or take a model of your own, `my_models.py:make`"
        )
    return reference.build_for(input_shapes, num_classes, vocabulary)


def derive(reference: Network | PythonModel, *, width: float = 1.0, depth: float = 1.0) -> Network | PythonModel:
    """A smaller or larger relative: channels and blocks times these factors.

    A user's function must have the parameters `width` and `depth`: a whole default is taken as a count and scaled, any
    other gets the factor. ModelError where the network cannot be scaled so.
    """
    if isinstance(reference, Network):
        return reference.scaled(width=width, depth=depth)
    arguments = dict(reference.arguments)
    for name, factor, multiple in (("width", width, 8), ("depth", depth, 1)):
        if factor != 1:
            arguments[name] = _scaled_argument(reference, name, factor, multiple)
    return reference.model_copy(update={"arguments": arguments})


def _scaled_argument(reference: PythonModel, name: str, factor: float, multiple: int) -> float:
    found = reference.reference()
    defaults = found.defaults()
    if name not in defaults:
        raise ModelError(
            f"{found} has no parameter {name!r}, so no student of another {name} can be derived from it; "
            f"give the function a parameter `{name}`, or name the student's own function"
        )
    current = reference.arguments.get(name, defaults[name])
    if isinstance(current, int) and not isinstance(current, bool):
        return rounded(current * factor, multiple)
    return current * factor if isinstance(current, float) else factor


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a `.safetensors` state dict that fits exactly. ModelError names missing, unexpected and misshapen keys."""
    stored = _stored_tensors(path)
    expected = model.state_dict()
    problems = [
        _listed("missing in the file", {key: expected[key] for key in expected.keys() - stored.keys()}),
        _listed("unknown to the model", {key: stored[key] for key in stored.keys() - expected.keys()}),
        _misshapen(stored, expected),
    ]
    if any(problems):
        raise ModelError(
            "\n  ".join([f"{path}: the weights do not fit the model", *filter(None, problems), _mend(stored, expected)])
        )
    broken = [key for key, tensor in stored.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ModelError(
            f"{path}: {', '.join(broken[:KEYS_SHOWN])} hold values that are NaN or infinite; use another file"
        )
    model.load_state_dict(stored)


def _stored_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights; paths start at the recipe's folder")
    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a readable .safetensors file ({error}); "
            "write it with safetensors.torch.save_file(model.state_dict(), path)"
        ) from error


def _listed(what: str, tensors: Mapping[str, Tensor]) -> str:
    return _lines(what, [f"{key} {_shape(tensor)}" for key, tensor in sorted(tensors.items())])


def _misshapen(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    shared = [key for key in sorted(stored.keys() & expected.keys()) if stored[key].shape != expected[key].shape]
    lines = [f"{key} {_shape(stored[key])}, the model has {_shape(expected[key])}" for key in shared]
    return _lines("of another shape", lines)


def _lines(what: str, lines: list[str]) -> str:
    if not lines:
        return ""
    more = [f"… and {len(lines) - KEYS_SHOWN} more"] if len(lines) > KEYS_SHOWN else []
    return "\n    ".join([f"{len(lines)} {what}:", *lines[:KEYS_SHOWN], *more])


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _mend(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What to do, from how the two sets of keys differ."""
    ends = {key[: -len(other)] for key in stored for other in expected if key.endswith("." + other)}
    for prefix in sorted(ends - {""}):
        if all(key.startswith(prefix) for key in stored):
            return f"every key of the file begins with {prefix!r}: save the state dict without it"
    if set(stored) == {key for key in expected if ".shortcut." not in key}:
        return "the file has no weights for shortcuts: use `shortcut: pad`"
    return "the network, its settings and the number of classes must be those that the file was trained with"


def check_runs(model: nn.Module, inputs: Mapping[str, Tensor], output_shape: tuple[int, ...] | None) -> Tensor:
    """The outputs of the model in eval mode for a batch.

    ModelError unless they are one finite tensor of shape (B, *output_shape); None is any shape (B, …).
    """
    shapes = ", ".join(f"{name} {_shape(tensor)}" for name, tensor in inputs.items())
    batch_size = len(next(iter(inputs.values())))
    was_training = model.training
    try:
        with torch.no_grad():
            outputs: Any = model.eval()(*inputs.values())
    except Exception as error:
        raise ModelError(
            f"the model does not run on the data's inputs ({shapes}): {type(error).__name__}: {error}"
        ) from error
    finally:
        model.train(was_training)
    if not isinstance(outputs, Tensor):
        raise ModelError(f"the model returned a value of type {type(outputs).__name__}; it must return one tensor")
    given = tuple(outputs.shape)
    if given != (batch_size, *output_shape) if output_shape is not None else given[:1] != (batch_size,):
        asked = "x".join(map(str, (batch_size, *(output_shape or ("…",)))))
        raise ModelError(
            f"the model gives outputs of shape {_shape(outputs)} for inputs {shapes}; they must be {asked}, the batch "
            "and as many as the data has classes, or as the targets of a regression are"
        )
    if not outputs.isfinite().all():
        raise ModelError("the model gives outputs that are NaN or infinite on the first test inputs; check its weights")
    return outputs


def check_padding(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """ModelError where a model says something else of a sample once it is padded to a longer one's length.

    `inputs` are samples of unequal length; those of one length each are not looked at.
    """
    lengths = lengths_of(inputs, "the first test samples")
    if lengths is None:
        return
    shortest = int(lengths.argmin())
    alone = cut({name: tensor[shortest : shortest + 1] for name, tensor in inputs.items()}, int(lengths[shortest]))
    was_training = model.training
    with torch.no_grad():
        model.eval()
        padded, bare = model(*inputs.values())[shortest], model(*alone.values())[0]
    model.train(was_training)
    if not torch.allclose(padded, bare, rtol=1e-3, atol=1e-3 * max(float(bare.abs().max()), 1e-6)):
        raise ModelError(
            f"the model says something else of a sample of length {int(lengths[shortest])} when it is padded to "
            f"{int(lengths.max())}: outputs differ by up to {float((padded - bare).abs().max()):.3g}. It must leave "
            f"out whatever {MASK} has a 0 for: mask the keys of its attention, and what it makes a mean or maximum of"
        )
