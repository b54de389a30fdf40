"""Facts about what is packaged and how it is pinned."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOTS = ("pipeline", "stages", "export", "configs")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_packages_are_the_folders_that_hold_an_init() -> None:
    folders = [file.parent for root in ROOTS for file in (ROOT / root).rglob("__init__.py")]
    found = {".".join(("potstill", *folder.relative_to(ROOT).parts)) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_folder_of_modules_holds_an_init() -> None:
    without = [
        file
        for root in ROOTS
        for file in (ROOT / root).rglob("*.py")
        if "__pycache__" not in file.parts and not (file.parent / "__init__.py").is_file()
    ]
    assert without == []


@pytest.mark.parametrize("root", ROOTS)
def test_types_are_declared(root: str) -> None:
    assert (ROOT / root / "py.typed").is_file()


def test_every_file_that_is_no_module_is_packaged() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    others = [
        file.relative_to(ROOT)
        for root in ROOTS
        for file in (ROOT / root).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc", ".md")
    ]
    assert [str(file) for file in others if not any(file.match(pattern) for pattern in patterns)] == []


def test_every_dependency_is_pinned_in_the_constraints() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {canonical(line.partition("==")[0]) for line in lines}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    assert {canonical(re.split(r"[<>=!~\[; ]", each)[0]) for each in wanted} <= pinned


def test_the_import_rules_name_every_module_of_the_core_pipeline() -> None:
    """A new module is either in the core or among what puts things together; here is where that gets decided."""
    contract = next(each for each in PROJECT["tool"]["importlinter"]["contracts"] if "core" in each["name"])
    known = {name.rpartition(".")[2] for name in (*contract["source_modules"], *contract["forbidden_modules"])}
    modules = {path.stem for path in (ROOT / "pipeline").iterdir() if path.stem not in ("__init__", "__main__", "py")}
    modules -= {"__pycache__", "starter"}
    assert modules <= known
