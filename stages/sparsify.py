"""2:4 sparsity: half of the weights become zeros in a pattern that GPUs skip, and the other half is trained back."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from ..pipeline.artifact import Artifact
from ..pipeline.blueprint import Sparsify as SparsifyEdit
from ..pipeline.cost import CONVOLUTIONS, TRANSPOSED, macs_by_layer
from ..pipeline.errors import StageError
from ..pipeline.sparsity import kept, obstacle
from .acceptance import Accept, accepted
from .pruning.selection import ignored_paths, shared_paths
from .recovery import Recovery, recover
from .stage import Context, Stage


class Sparsify(Stage, frozen=True, extra="forbid"):
    """Set two of every four weights along each layer's inputs to zero, and distil again; the zeros stay."""

    compresses: ClassVar[bool] = True
    keeps_zeros: ClassVar[bool] = True

    stage: Literal["sparsify"] = "sparsify"  # pyright: ignore[reportIncompatibleVariableOverride] # frozen, so a narrower type is safe
    pattern: Literal["2:4"] = "2:4"
    """The one that GPUs have kernels for; of every four the two of the largest magnitude stay."""
    ignore: tuple[str, ...] = ()
    """Patterns of module paths that stay dense, such as `head`."""
    accept: Accept = "always"
    """`faster` or `smaller` undoes it where the engine is not, beyond noise, what is said here."""
    recover: Recovery = Recovery(epochs=1)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact with the pattern in every layer that can hold it, trained on with its zeros held.

        Raises StageError where no layer can.
        """
        sparse, dense = self._chosen(artifact.model, context)
        context.journal.fact("sparse layers", sparse)
        context.journal.fact("dense layers", [f"{path}: {reason}" for path, reason in dense.items()])
        if not sparse:
            raise StageError(f"{self.step_name}: no layer can hold the pattern: {_listed(dense)}. Mend: drop the stage")
        if dense:
            context.progress.say(f"{self.step_name}: dense stay {_listed(dense)}")
        model = _with_zeros(artifact.model, sparse)
        context.journal.fact("zeros", _share_of_zeros(model, sparse))
        edit = SparsifyEdit(layers=tuple(sparse))
        sparsified = replace(artifact, model=model, blueprint=artifact.blueprint.with_edit(edit))
        if not accepted(artifact, sparsified, self.accept, context):
            return artifact
        return recover(sparsified, self.recover, context)

    @property
    def decides_by_engine(self) -> bool:
        """When the engine has to be faster or smaller."""
        return self.accept != "always"

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers."""
        return self.recover.named_teachers("recover")

    def untrained(self) -> Self:
        """The same zeros, not trained on."""
        recovery = self.recover.model_copy(update={"epochs": 0})
        return self.model_copy(update={"accept": "always", "recover": recovery})

    def _chosen(self, model: nn.Module, context: Context) -> tuple[list[str], dict[str, str]]:
        """The layers that get the pattern, and the others with the reason; only those that run count."""
        ignored, shared = ignored_paths(model, self.ignore), shared_paths(model)
        runs = macs_by_layer(model, context.data.example())
        sparse: list[str] = []
        dense: dict[str, str] = {}
        for path, layer in cast(Iterable[tuple[str, nn.Module]], model.named_modules()):
            if path not in runs or not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
                continue
            reason = "named in `ignore`" if path in ignored else obstacle(layer)
            if reason is None and path in shared:
                reason = "shares its weight with another layer"
            if reason is None:
                sparse.append(path)
            else:
                dense[path] = reason
        return sparse, dense


@torch.no_grad()
def _with_zeros(model: nn.Module, paths: Iterable[str]) -> nn.Module:
    sparse = deepcopy(model)
    for path in paths:
        weight = _weight(sparse, path)
        weight.mul_(kept(weight))
    return sparse


def _share_of_zeros(model: nn.Module, paths: Iterable[str]) -> float:
    """Of all weights of these layers."""
    weights = [_weight(model, path) for path in paths]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def _weight(model: nn.Module, path: str) -> Tensor:
    layer: Any = model.get_submodule(path)
    return cast(Tensor, layer.weight)


def _listed(dense: dict[str, str]) -> str:
    named = [f"{path} ({reason})" for path, reason in list(dense.items())[:12]]
    return ", ".join(named) + (f" and {len(dense) - 12} more" if len(dense) > 12 else "")
