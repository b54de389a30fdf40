"""What TensorRT says while it parses, builds and runs, turned into one error that says how to mend it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...pipeline.errors import ExportError

MOST_TOLD = 5
MOST_REMARKED = 10

_PLACE = re.compile(r"^\[?[\w./]+\.(cpp|h|cu)::[^\]]*\]?\s*|^\d+: \[[^\]]*\]\s*")
"""Where in TensorRT's source a message comes from."""

_MENDS = (
    (
        r"could not find any implementation",
        "give it more scratch memory (leave `workspace_mb` out), raise `builder_optimization_level`, or leave that "
        "layer in float by the quantize stage's `ignore`",
    ),
    (r"out of memory|OutOfMemory|insufficient memory", "smaller batches in `batch`, or less of the GPU in use"),
    (
        r"optimization profile|dynamic|kMIN|kMAX|kOPT",
        "the ranges of free dimensions, `batch` and `shapes` of the target",
    ),
    (r"serializ|magic|version tag|platform|incompatible", "build it again, on this machine and with this TensorRT"),
    (
        r"strongly.?typed|types? .*mismatch|same type|must have .*type",
        "`floats: fp32`, which casts nothing in the graph",
    ),
)


@dataclass
class Messages:
    """What was logged, by weight; repeated lines once."""

    errors: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])

    def add(self, weight: str, text: str) -> None:
        """Take a message with its severity, as TensorRT names it; those below a warning are dropped."""
        kept = {"INTERNAL_ERROR": self.errors, "ERROR": self.errors, "WARNING": self.warnings}.get(weight)
        line = " ".join(_PLACE.sub("", text).split())
        if kept is not None and line not in kept:
            kept.append(line)

    def remarks(self) -> tuple[str, ...]:
        """The warnings, as far as they are few enough to be read."""
        more = len(self.warnings) - MOST_REMARKED
        told = (f"TensorRT warns: {line}" for line in self.warnings[:MOST_REMARKED])
        return (*told, *((f"TensorRT warns of {more} more things",) if more > 0 else ()))

    def failure(self, what: str) -> ExportError:
        """The error for what TensorRT could not do, with all that it said."""
        return ExportError(_told(what, self.errors or ["it says nothing"]))


@dataclass(frozen=True)
class ParserProblem:
    """One error of the ONNX parser."""

    node: str
    """Its name; empty where the problem is not one node's."""
    operator: str
    description: str

    def in_words(self) -> str:
        """With the node, where there is one."""
        where = f"{self.node or 'a node'} ({self.operator}): " if self.operator else ""
        return where + " ".join(_PLACE.sub("", self.description).split())


def parser_failure(file: str, problems: Sequence[ParserProblem], messages: Messages) -> ExportError:
    """The error for a graph that the parser refused."""
    lines = list(dict.fromkeys(problem.in_words() for problem in problems))
    text = _told(f"TensorRT cannot read {file}", lines or messages.errors or ["it says nothing"], mend=False)
    operators = list(dict.fromkeys(problem.operator for problem in problems if problem.operator))
    named = f"replace {', '.join(operators)} in the model" if operators else "check the file with onnx.checker"
    return ExportError(f"{text}\nMend: {named}, or take the target out.")


def _told(what: str, lines: Sequence[str], *, mend: bool = True) -> str:
    more = f"\n  and {len(lines) - MOST_TOLD} more" if len(lines) > MOST_TOLD else ""
    text = f"{what}:\n" + "\n".join(f"  {line[:400]}" for line in lines[:MOST_TOLD]) + more
    return f"{text}\nMend: {_mend(lines)}." if mend else text


def _mend(lines: Sequence[str]) -> str:
    said = "\n".join(lines)
    found = (way for pattern, way in _MENDS if re.search(pattern, said, re.IGNORECASE))
    return next(found, "see what it says above; the graph can be looked at in the ONNX file")
