"""Labels: integers that say which channel each element of a tensor belongs to, and which of them are the same.

0 is no channel: a constant, or the network's input. Two labels are one channel as soon as an operator needs both to go
together; they are then joined (union-find, all at once as in Shiloach and Vishkin 1982).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor


class Labels:
    """All labels of one model, which are one channel, and why some of these have to stay."""

    def __init__(self) -> None:
        self._parent = torch.zeros(1, dtype=torch.long)
        self._source = torch.zeros(1, dtype=torch.long)
        self._stuck: list[tuple[Tensor, str]] = []

    def fresh(self, count: int) -> Tensor:
        """So many new labels, which are the channels of one tensor, each another one."""
        start = len(self._parent)
        labels = torch.arange(start, start + count)
        self._parent = torch.cat([self._parent, labels])
        self._source = torch.cat([self._source, torch.full((count,), start)])
        return labels

    def now(self, labels: Tensor) -> Tensor:
        """The labels with one integer for each channel, whatever was joined since."""
        return self._parent[spread_out(labels)].expand(labels.shape)

    def source(self, labels: Tensor) -> Tensor:
        """One integer for each tensor that labels were made for."""
        return self._source[labels]

    def join(self, first: Tensor, second: Tensor, constant: str) -> None:
        """Make the labels of two tensors of one shape the same, element by element.

        A label beside a constant has to stay, for the reason `constant`: the constant's size does not change.
        """
        first, second = spread_out_together(first, second)
        lone = (first == 0) != (second == 0)
        if lone.any():
            self.stick(torch.maximum(first, second)[lone], constant)
        both = (first != 0) & (second != 0)
        self._unite(first[both], second[both])

    def join_along(self, labels: Tensor, dims: tuple[int, ...], constant: str) -> Tensor:
        """Make the labels the same along these dimensions; what is left of them without these."""
        if not dims:
            return self.now(labels)
        compact = self.now(labels)
        left = spread_out(compact).amax(dims, keepdim=True)
        self.join(spread_out(compact), left, constant)
        kept = [size for dim, size in enumerate(labels.shape) if dim not in dims]
        full = [1 if dim in dims else size for dim, size in enumerate(labels.shape)]
        return self.now(left).expand(full).reshape(kept)

    def _unite(self, first: Tensor, second: Tensor) -> None:
        while True:
            first, second = self._parent[first], self._parent[second]
            differ = first != second
            if not differ.any():
                return
            first, second = first[differ], second[differ]
            low, high = torch.minimum(first, second), torch.maximum(first, second)
            self._parent.scatter_reduce_(0, high, low, "amin")
            while not torch.equal(shorter := self._parent[self._parent], self._parent):
                self._parent = shorter

    def stick(self, labels: Tensor, reason: str) -> None:
        """These channels have to stay."""
        found = cast(Any, torch).unique(spread_out(labels))
        if len(found[found != 0]):
            self._stuck.append((found[found != 0], reason))

    def stuck(self) -> dict[int, str]:
        """Why each of the channels that have to stay has to, by its label of now; the first reason found."""
        reasons: dict[int, str] = {}
        for labels, reason in self._stuck:
            for label in distinct(self._parent[labels]):
                reasons.setdefault(label, reason)
        return reasons

    def varies(self, labels: Tensor, dim: int) -> bool:
        """Whether the channels along a dimension are different ones."""
        if labels.shape[dim] < 2 or strides(labels)[dim] == 0:
            return False
        found = spread_out(self.now(labels))
        return bool((found != found.narrow(dim, 0, 1)).any())

    def along(self, labels: Tensor, dim: int) -> Tensor | None:
        """The channel of each index of a dimension, where each index holds one channel; else None."""
        if not self.varies(labels, dim):
            return None
        found = spread_out(self.now(labels).movedim(dim, -1)).reshape(-1, labels.shape[dim])
        return found[0] if bool((found == found[0]).all()) else None


def spread_out(labels: Tensor) -> Tensor:
    """The labels without the repetitions along dimensions that were expanded, of which one index is left."""
    return labels[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides(labels))]


def spread_out_together(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors broadcast to one shape, without the repetitions that they have in common."""
    first, second = cast(tuple[Tensor, Tensor], cast(Any, torch).broadcast_tensors(first, second))
    pairs = zip(strides(first), strides(second), strict=True)
    kept = tuple(slice(0, 1) if of_first == of_second == 0 else slice(None) for of_first, of_second in pairs)
    return first[kept], second[kept]


def distinct(labels: Tensor) -> set[int]:
    """The labels that there are, and 0 where some elements have none."""
    return set(integers(spread_out(labels).flatten()))


def integers(labels: Tensor) -> list[int]:
    """The labels along one dimension."""
    return cast(list[int], cast(Any, labels).tolist())


def broadcast_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape of what operands of these shapes make."""
    return tuple(cast(Any, torch).broadcast_shapes(*shapes))


def strides(labels: Tensor) -> tuple[int, ...]:
    """How far apart neighbours are in memory, by dimension; 0 where one element is repeated."""
    return cast(tuple[int, ...], cast(Any, labels).stride())
