"""Which layers of two networks correspond, and reading their outputs."""

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ...pipeline.errors import StageError


class Taps:
    """A context manager within which the outputs of the modules at `paths` are kept, by path."""

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        self.outputs: dict[str, Tensor] = {}
        self._model = model
        self._paths = tuple(paths)
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for path in self._paths:
            module = self._model.get_submodule(path)
            self._handles.append(module.register_forward_hook(self._keeper(path)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _keeper(self, path: str) -> Any:
        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.outputs[path] = output

        return keep


def module_paths(model: nn.Module) -> list[str]:
    """Every module below the model itself."""
    return [path for path in dict(cast("Iterator[tuple[str, nn.Module]]", model.named_modules())) if path]


@torch.no_grad()
def output_shapes(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The output shape of every module that returns one tensor, batch included, in the order they finish."""
    training = model.training
    model.eval()
    with Taps(model, module_paths(model)) as taps:
        model(*inputs.values())
    model.train(training)
    return {path: tuple(output.shape) for path, output in taps.outputs.items()}


def resolution_ends(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The last module of each resolution of maps (B, C, H, W), largest first; pooled 1×1 maps are left out."""
    ends: dict[tuple[int, ...], str] = {}
    for path, shape in shapes.items():
        if len(shape) == 4 and shape[2:] != (1, 1):
            ends[shape[2:]] = path
    return list(ends.values())


def matched_ends(
    student: Mapping[str, tuple[int, ...]], teacher: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, str]]:
    """Pairs of (student, teacher) resolution ends, counted from the deepest; raises StageError where there are none."""
    pairs = list(zip(reversed(resolution_ends(student)), reversed(resolution_ends(teacher)), strict=False))
    if not pairs:
        raise StageError(
            "`hint` with `layers: auto` needs maps (batch, channels, height, width) in student and teacher, and found "
            "none: name the layers, or use `kd`"
        )
    return pairs[::-1]


def require_layers(model: nn.Module, paths: Iterable[str], whose: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise StageError for a path that is no module, or whose module gives no tensor."""
    import difflib

    known = module_paths(model)
    for path in paths:
        if path not in known:
            close = difflib.get_close_matches(path, known, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else ""
            raise StageError(f"`hint`: the {whose} has no layer `{path}`{hint}")
        if path not in shapes:
            raise StageError(f"`hint`: the {whose}'s layer `{path}` does not return one tensor when the model runs")
