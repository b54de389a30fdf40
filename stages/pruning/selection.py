"""Which layers of a model a stage may change."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor, nn

from ...pipeline.errors import StageError


def ignored_paths(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """The paths of the modules that match a pattern, and of everything inside them.

    Raises StageError for a pattern that matches nothing: it is a typing error or meant for another model.
    """
    paths = [path for path, _ in _places(model) if path]
    matched: set[str] = set()
    for pattern in patterns:
        found = {path for path in paths if fnmatchcase(path, pattern)}
        if not found:
            leaves = [path for path in paths if not any(other.startswith(f"{path}.") for other in paths)]
            shown = ", ".join(leaves[:8]) + (", …" if len(leaves) > 8 else "")
            raise StageError(f"ignore: {pattern!r} matches no module of the model; its layers are called {shown}")
        matched |= found
    return {path for path in paths if any(path == root or path.startswith(f"{root}.") for root in matched)}


def shared_paths(model: nn.Module) -> set[str]:
    """Paths of modules that stand at another place too, or that share their weight with one that does."""
    places: dict[int, set[str]] = {}
    for path, module in _places(model):
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            places.setdefault(id(weight), set()).add(path)
    return {path for paths in places.values() if len(paths) > 1 for path in paths}


def _places(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Every path of every module, so a module that stands at two places comes twice."""
    return cast(Iterable[tuple[str, nn.Module]], model.named_modules(remove_duplicate=False))
