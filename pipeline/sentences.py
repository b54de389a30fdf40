"""Which texts are held out, where some are parts of others, as the phrases of a treebank are of its sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .data import stratified
from .errors import DataError


@dataclass(frozen=True)
class HeldOut:
    """Positions of texts, ascending."""

    validation: list[int]
    train: list[int]
    dropped: list[int]
    """In neither: they are equal to a text of the validation split, or part of one."""


def hold_out(texts: Sequence[str], labels: Sequence[int], count: int, origin: str) -> HeldOut:
    """`count` whole texts for validation, each class in its share, of which training holds no word-by-word part.

    A text is whole where no other one contains it, as a row of words, words being what blanks separate. Texts are drawn
    among the whole ones; what is equal to a drawn text or part of one goes into neither split. So nothing of a training
    text but single overlaps of words is known from validation. DataError where there are too few whole texts.
    """
    words = [tuple(text.split()) for text in texts]
    first: dict[tuple[str, ...], int] = {}
    for position, each in enumerate(words):
        first.setdefault(each, position)
    parts = _Parts(list(first))
    within: set[tuple[str, ...]] = set()
    for each in sorted(first, key=len, reverse=True):
        if each not in within:  # else what holds it has its parts, too
            within.update(parts.of(each))
    whole = [position for each, position in first.items() if each not in within]
    if count > len(whole) // 2:
        raise DataError(
            f"{origin}: `validation: {count}` is more than half of the {len(whole)} whole texts, which are those that "
            f"no other text contains; hold out at most {len(whole) // 2}"
        )
    chosen, _ = stratified(torch.tensor([labels[position] for position in whole]), count)
    picks: list[int] = chosen.numpy().tolist()
    validation = sorted(whole[pick] for pick in picks)
    gone = {words[position] for position in validation}
    gone |= {part for each in list(gone) for part in parts.of(each)}
    held = set(validation)
    left = [position for position in range(len(texts)) if position not in held]
    return HeldOut(
        validation,
        [position for position in left if words[position] not in gone],
        [position for position in left if words[position] in gone],
    )


class _Parts:
    """Which of the given rows of words are part of another row: a tree of their beginnings, walked from each word."""

    def __init__(self, rows: Sequence[tuple[str, ...]]) -> None:
        self._next: dict[tuple[int, str], int] = {}
        self._ends: dict[int, tuple[str, ...]] = {}
        for row in rows:
            node = 0
            for word in row:
                node = self._next.setdefault((node, word), len(self._next) + 1)
            self._ends[node] = row

    def of(self, row: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The given rows that `row` contains, but itself."""
        for begin in range(len(row)):
            node = 0
            for word in row[begin:]:
                node = self._next.get((node, word), -1)
                if node < 0:
                    break
                found = self._ends.get(node)
                if found is not None and found != row:
                    yield found
