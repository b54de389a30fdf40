"""Data sets as the package `datasets` opens them, from files of this machine or by a name on the hub."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from ..errors import DataError, MissingDependency
from ..quiet import quiet

FILES = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json"}
"""What reads a single file, by its ending."""
SAVED = ("dataset_dict.json", "state.json")
"""A folder that `save_to_disk` wrote has one of them."""

Table = Any
"""One split; the package is optional, so its types are not known here."""


def package() -> Any:
    """The package; MissingDependency where it is not installed."""
    try:
        return import_module("datasets")
    except ImportError as error:
        raise MissingDependency(
            f"`source: huggingface` reads by the package datasets, which does not import ({error}): "
            "pip install 'potstill[huggingface]'"
        ) from error


def opened_files(path: Path, subset: str | None) -> Mapping[str, Table]:
    """The splits of a file, of a folder of files, or of what `save_to_disk` wrote; DataError says what is wrong."""
    datasets = package()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; `data.path` names what the package datasets reads")
    if path.is_file() and path.suffix not in FILES:
        raise DataError(f"{path}: is no file that a data set is read from; they end in {', '.join(FILES)}")
    with _told(str(path), "is it a data set that the package datasets reads?"), _quiet(datasets):
        if path.is_file():
            return datasets.load_dataset(FILES[path.suffix], data_files=str(path))
        if any((path / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(str(path))
            # A single table has no splits, and is all there is to train on.
            return cast("Mapping[str, Table]", found) if isinstance(found, Mapping) else {"train": found}
        return datasets.load_dataset(str(path), subset)


def opened_from_hub(name: str, subset: str | None, revision: str | None) -> Mapping[str, Table]:
    """The splits of a data set on the hub, or of its copy in the package's cache; DataError where there is neither."""
    datasets = package()
    mend = "is the name right, and is the hub to be reached from here? With a copy on this machine, give its `path`"
    with _told(name, mend), _quiet(datasets):
        return datasets.load_dataset(name, subset, revision=revision)


@contextmanager
def _told(what: str, mend: str) -> Generator[None]:
    """The package raises errors of many kinds of its own, of the hub's client and of the files' readers."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{what} cannot be opened ({type(error).__name__}: {reason}); {mend}") from error


@contextmanager
def _quiet(datasets: Any) -> Generator[None]:
    """Without the package's progress bars, and what the hub's client says of its tries."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with quiet("huggingface_hub"):
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()
