"""The terms that a training's loss is made of: how large each one is, and how much of the gradient is its own."""

from dataclasses import dataclass

from ..report import StepReport
from . import wording
from .tables import Cell, Table, figures, words


@dataclass(frozen=True)
class Term:
    """One term of a step's loss, over all epochs; where an epoch does not name it, it added nothing."""

    name: str
    values: tuple[tuple[float, float], ...]
    """Epoch and weighted value."""
    shares: tuple[tuple[float, float], ...]
    """Epoch and share of the gradient's length, of the epochs that were looked at."""

    @property
    def mean_share(self) -> float:
        """Over the looks, of which there must be one."""
        return sum(share for _, share in self.shares) / len(self.shares)


def terms_of(step: StepReport) -> tuple[Term, ...]:
    """In the order of the loss; none for a loss of a single term, which is the total."""
    names = list(dict.fromkeys(name for point in step.curve for name in point.terms))
    if len(names) < 2:
        return ()
    looks = [(point.epoch, point.gradient_shares) for point in step.curve if point.gradient_shares]
    return tuple(
        Term(
            name,
            values=tuple((point.epoch, point.terms.get(name, 0.0)) for point in step.curve),
            shares=tuple((epoch, shares.get(name, 0.0)) for epoch, shares in looks),
        )
        for name in names
    )


def terms_table(terms: tuple[Term, ...]) -> Table:
    """What each term came to; without shares where nobody looked at the gradient."""
    columns = (words("Term"), figures("At the end", "weighted"))
    rows = tuple((Cell(term.name), Cell(wording.figure(term.values[-1][1]))) for term in terms)
    if not terms[0].shares:
        return Table("Terms of the loss", columns, rows)
    columns += (figures("Gradient", "mean, %"), figures("Gradient", "last, %"))
    rows = tuple(
        (*row, *(Cell(share_text(share)) for share in (term.mean_share, term.shares[-1][1])))
        for row, term in zip(rows, terms, strict=True)
    )
    return Table("Terms of the loss", columns, rows)


def terms_sentence(step: str, terms: tuple[Term, ...]) -> str:
    """The same in one line, for where there is little room."""
    if not terms[0].shares:
        parts = (f"{term.name} {wording.figure(term.values[-1][1])}" for term in terms)
        return f"{step}: terms of the loss at the end: {', '.join(parts)}"
    parts = (f"{term.name} {wording.figure(term.values[-1][1])} ({share_text(term.mean_share)} %)" for term in terms)
    return f"{step}: terms of the loss at the end (mean share of the gradient): {', '.join(parts)}"


def share_text(share: float) -> str:
    """In percent, such as ``61.3``."""
    return wording.plain(100 * share, 1)
