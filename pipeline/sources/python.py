"""Samples that a function in the user's own file returns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field

from ..data import DataSource
from ..data_checks import RawSamples, Reading
from ..errors import DataError
from ..normalization import Normalize
from ..progress import Progress
from ..python_reference import PythonReference

SHAPE_OF_RESULT = "return dict(train=(inputs, labels), test=(inputs, labels))"


class Python(DataSource, frozen=True, extra="forbid"):
    """Whatever `my_data.py:make` returns: ``dict(train=(inputs, labels), test=(inputs, labels))``.

    Inputs are an array (N, C, H, W), or a dict of arrays by input name; `validation` and `classes` may be added. For a
    task other than a classification, the labels are its targets (N, …).
    """

    source: Annotated[str, Field(pattern=r"^[^:]+\.py:[A-Za-z_]\w*$")]
    """`file.py:function`; a relative path starts at the recipe's folder."""
    normalize: Normalize = "none"
    """The function's own values are kept, except that uint8 becomes 0 to 1."""

    def read(self, directory: Path, progress: Progress) -> Reading:
        """Call the function and take its splits."""
        reference = PythonReference.parse(self.source, directory, DataError)
        result = reference.call({})
        where = f"{reference.file.name}:{reference.function}"
        if not isinstance(result, Mapping):
            raise DataError(f"{where} returned {_article(result)}; it must {SHAPE_OF_RESULT}")
        return _reading(cast("Mapping[str, object]", result), where)


def _reading(result: Mapping[str, object], where: str) -> Reading:
    allowed = ("train", "test", "validation", "classes")
    unknown = [str(key) for key in result if key not in allowed]
    lacking = [key for key in ("train", "test") if result.get(key) is None]
    if unknown or lacking:
        wrong = f"lacks {', '.join(lacking)}" if lacking else f"has the unknown entry {', '.join(unknown)}"
        raise DataError(f"{where} returned a dict that {wrong}; allowed are {', '.join(allowed)}: {SHAPE_OF_RESULT}")
    splits = {key: _samples(result[key], f"{where}, {key}") for key in allowed[:3] if result.get(key) is not None}
    return Reading(
        splits["train"],
        splits["test"],
        where,
        validation=splits.get("validation"),
        classes=_classes(result.get("classes"), where),
    )


def _samples(pair: object, where: str) -> RawSamples:
    if not isinstance(pair, list | tuple) or len(cast("Sequence[object]", pair)) != 2:
        raise DataError(f"{where} is {_article(cast(object, pair))}; it must be a pair (inputs, labels)")
    inputs, target = cast("Sequence[object]", pair)
    if isinstance(inputs, Mapping):
        return RawSamples(
            {str(key): value for key, value in cast("Mapping[Any, object]", inputs).items()}, target, where
        )
    name = "image" if getattr(inputs, "ndim", 4) == 4 else "input"
    return RawSamples({name: inputs}, target, where)


def _classes(names: object, where: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list | tuple):
        raise DataError(f"{where}: `classes` is {_article(names)}; it must be a list of names, one a class")
    return tuple(str(name) for name in cast("Sequence[object]", names))


def _article(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
