"""A student and its teacher side by side: which layers correspond, and which methods can serve the two."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Discriminator, Tag
from torch import Tensor

from ...pipeline.blueprint import Blueprint
from ...pipeline.errors import StageError
from ..stage import Context
from .anatomy import FUSED, VALUES, Anatomy, LayerError
from .projection import Shape, is_grid


class LayerPair(BaseModel, frozen=True, extra="forbid"):
    """A layer of each network, or a pattern of as many layers in each."""

    student: str
    teacher: str


def _form(value: Any) -> str | None:
    if isinstance(value, str):
        return "a pattern"
    if isinstance(value, LayerPair | Mapping):
        return "a pattern for each network"
    return "a list of pairs" if isinstance(value, list | tuple) else None


Layers = Annotated[
    Annotated[str, Tag("a pattern")]
    | Annotated[LayerPair, Tag("a pattern for each network")]
    | Annotated[tuple[LayerPair, ...], Tag("a list of pairs")],
    Discriminator(_form),
]
"""`auto`, a pattern for both networks, a pattern for each, or a list of pairs. A path may end in ``:input``."""

Found = TypeVar("Found")

KINDS = {2: "vectors (B, D)", 3: "tokens (B, N, D)", 4: "maps (B, C, H, W)"}


@dataclass(frozen=True)
class Match:
    """Two corresponding taps and what flows there, batch axes included."""

    student: str
    teacher: str
    student_shape: Shape
    teacher_shape: Shape

    def __str__(self) -> str:
        return f"{self.student} → {self.teacher}"


@dataclass(frozen=True)
class Pair:
    """What a method is built for: two networks, known from a dry forward, and where they are trained."""

    method: str
    """The method's name in recipes, for messages."""
    student: Anatomy
    teacher: Anatomy
    context: Context
    seed: int
    """The term's own seed, for its projectors and draws."""
    blueprint: Blueprint
    """How the student is rebuilt."""
    alternatives: Callable[["Pair"], Sequence[str]]
    """The names of the methods that can serve the pair."""

    def cannot(self, reason: str) -> StageError:
        """The error that says why the method cannot serve the pair, and which ones can."""
        others = [f"`{name}`" for name in self.alternatives(self) if name != self.method]
        mend = f". Methods that can serve this pair: {', '.join(others)}" if others else ""
        return StageError(f"`{self.method}`: {reason}{mend}")

    def matches(
        self,
        layers: Layers,
        *,
        axes: tuple[int, ...] = (2, 3, 4),
        grids: bool = False,
        at_least: int = 1,
        before_activation: bool | Literal["where possible"] = False,
    ) -> list[Match]:
        """The pairs of taps that `layers` names, shallowest first. Raises StageError where the method finds none.

        `axes` are the kinds of tensors that the method takes, such as ``(4,)`` for maps only; `grids` asks for maps, or
        tokens that are a square grid of patches; `before_activation` moves taps of `auto` before the activation that
        ends them, and with `where possible` leaves those that no module's input is.
        """
        named = [
            Match(mine, theirs, self._shape(self.student, mine), self._shape(self.teacher, theirs))
            for mine, theirs in self._named(layers)
        ]
        fitting = [match for match in named if _fits(match, axes, grids=grids)]
        wanted = "maps or square grids of tokens" if grids else " or ".join(KINDS[number] for number in axes)
        if layers != "auto" and len(fitting) < len(named):
            wrong = next(match for match in named if match not in fitting)
            raise self.cannot(
                f"takes {wanted}, but `{wrong.student}` of the student gives {wrong.student_shape} and "
                f"`{wrong.teacher}` of the teacher {wrong.teacher_shape}"
            )
        if len(fitting) < at_least:
            raise self.cannot(
                f"`layers: {layers if isinstance(layers, str) else '…'}` finds {len(fitting)} corresponding layers "
                f"with {wanted} in student and teacher, and the method needs {at_least} or more; name the layers"
            )
        if before_activation and layers == "auto":
            must = before_activation != "where possible"
            return [self._before_activation(match, must=must) for match in fitting]
        return fitting

    def features(self) -> Match:
        """The pooled features (B, D) that both heads stand on. Raises StageError where a network has no linear head."""
        return self._match(Anatomy.features)

    def heads(self) -> tuple[str, str]:
        """The linear layers that give the logits, student's and teacher's."""
        return self._of("student", Anatomy.head), self._of("teacher", Anatomy.head)

    def last_maps(self, *, grids: bool = False) -> Match:
        """The maps whose means the heads stand on; with `grids`, or the tokens that are a square grid of patches.

        Raises StageError where a head stands on something else.
        """
        return self._match(lambda anatomy: anatomy.last_map(grids=grids))

    def pooling(self) -> str:
        """The student's module that pools its last maps. Raises StageError where a function does."""
        return self._of("student", Anatomy.pooling)

    def embeddings(self) -> Match:
        """The tokens that go into the first blocks of two transformers. Raises StageError where one has no blocks."""
        return self._match(Anatomy.embeddings)

    def attentions(self, *, scores: bool = False) -> list[Match]:
        """The attention probabilities (B, heads, N, N) of corresponding blocks, spread evenly over the deeper network.

        With `scores`, what their softmax is given. Raises StageError where a network has no module that shows them.
        """
        mine, theirs = self.student.attentions(), self.teacher.attentions()
        if not mine or not theirs:
            whose = "student" if not mine else "teacher"
            raise self.cannot(
                f"the {whose} has no module that gives attention probabilities (B, heads, N, N), such as an nn.Softmax"
            )
        if scores:
            mine = [self._of("student", lambda anatomy, tap=tap: anatomy.scores(tap)) for tap in mine]
            theirs = [self._of("teacher", lambda anatomy, tap=tap: anatomy.scores(tap)) for tap in theirs]
        return self._spread(mine, theirs)

    def values(self) -> list[Match]:
        """The values of corresponding blocks' attentions, spread evenly; queries and keys before them where fused.

        Raises StageError where they are not found by their names.
        """
        mine, theirs = self.student.values(), self.teacher.values()
        if not mine or not theirs:
            whose = "student" if not mine else "teacher"
            raise self.cannot(
                f"the {whose} has no layer called like those that give an attention's values "
                f"({', '.join(f'`{name}`' for name in (*VALUES, *FUSED))}); name the layers"
            )
        return self._spread(mine, theirs)

    def example(self) -> dict[str, Tensor]:
        """A few inputs on the training's device."""
        context = self.context
        return {name: tensor.to(context.device) for name, tensor in context.data.example().items()}

    def _spread(self, mine: Sequence[str], theirs: Sequence[str]) -> list[Match]:
        return [
            Match(*taps, self._shape(self.student, taps[0]), self._shape(self.teacher, taps[1]))
            for taps in spread(mine, theirs)
        ]

    def _match(self, find: Callable[[Anatomy], str]) -> Match:
        mine, theirs = self._of("student", find), self._of("teacher", find)
        return Match(mine, theirs, self.student.shape(mine), self.teacher.shape(theirs))

    def _of(self, whose: str, find: Callable[[Anatomy], str]) -> str:
        try:
            return find(self.student if whose == "student" else self.teacher)
        except LayerError as error:
            raise self.cannot(f"the {whose} {error}") from error

    def _shape(self, anatomy: Anatomy, tap: str) -> Shape:
        return tuple(int(size) for size in self._lookup(anatomy, lambda: anatomy.shape(tap)))

    def _lookup(self, anatomy: Anatomy, look: Callable[[], Found]) -> Found:
        whose = "student" if anatomy is self.student else "teacher"
        try:
            return look()
        except LayerError as error:
            raise StageError(f"`{self.method}`: the {whose} {error}") from error

    def _named(self, layers: Layers) -> list[tuple[str, str]]:
        if layers == "auto":
            mine, theirs = self.student.ends(), self.teacher.ends()
            if self.student.is_transformer() or self.teacher.is_transformer():
                return spread(mine, theirs)
            return list(zip(reversed(mine), reversed(theirs), strict=False))[::-1]
        if isinstance(layers, tuple):
            return [(pair.student, pair.teacher) for pair in layers]
        patterns = LayerPair(student=layers, teacher=layers) if isinstance(layers, str) else layers
        mine = self._lookup(self.student, lambda: self.student.matching(patterns.student))
        theirs = self._lookup(self.teacher, lambda: self.teacher.matching(patterns.teacher))
        if len(mine) != len(theirs):
            raise StageError(
                f"`{self.method}`: `{patterns.student}` fits {len(mine)} layers of the student ({', '.join(mine)}) and "
                f"`{patterns.teacher}` {len(theirs)} of the teacher ({', '.join(theirs)}); they must be as many"
            )
        return list(zip(mine, theirs, strict=True))

    def _before_activation(self, match: Match, *, must: bool) -> Match:
        def find(anatomy: Anatomy, tap: str) -> str:
            try:
                return anatomy.before_activation(tap)
            except LayerError:
                if must:
                    raise
                return tap

        mine = self._of("student", lambda anatomy: find(anatomy, match.student))
        theirs = self._of("teacher", lambda anatomy: find(anatomy, match.teacher))
        return Match(mine, theirs, match.student_shape, match.teacher_shape)


def spread(mine: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """Each layer of the shallower row with one of the deeper, evenly spaced and ending at the last (TinyBERT §3.1)."""
    count = min(len(mine), len(theirs))
    return [(mine[at * len(mine) // count - 1], theirs[at * len(theirs) // count - 1]) for at in range(1, count + 1)]


def _fits(match: Match, axes: tuple[int, ...], *, grids: bool) -> bool:
    shapes = (match.student_shape, match.teacher_shape)
    return all(is_grid(shape) if grids else len(shape) in axes for shape in shapes)
