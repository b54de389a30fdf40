"""Hashes that say whether something is still what it was made from."""

import hashlib
import json
from pathlib import Path

from pydantic import JsonValue

ROOT = Path(__file__).parent.parent
"""The folder of potstill's packages, installed or in a checkout."""


def fingerprint(*parts: JsonValue) -> str:
    """sha256 of the parts as canonical JSON: the order of a dict's keys does not matter, everything else does."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def code_fingerprint(*packages_or_modules: str) -> str:
    """sha256 of the source of potstill modules, and of all modules of packages, such as ``potstill.stages.prune``.

    Nothing is imported. A changed comment counts: that costs time, where a missed change would cost a wrong result.
    """
    digest = hashlib.sha256()
    for name in sorted(set(packages_or_modules)):
        for file in _source_files(name):
            digest.update(f"{file.relative_to(ROOT).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _source_files(name: str) -> list[Path]:
    base = ROOT.joinpath(*name.removeprefix("potstill.").split("."))
    module = base.with_name(base.name + ".py")
    files = [module] if module.is_file() else sorted(base.rglob("*.py"))
    assert files, f"{name} is no module of potstill"
    return files


def sha256_of(file: Path) -> str:
    """Of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_by_file(folder: Path) -> dict[str, str]:
    """Of every file below a folder, by its path from there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
