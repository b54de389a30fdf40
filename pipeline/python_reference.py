"""Functions in the user's own files, named as `path/file.py:function`."""

import ast
import difflib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .errors import PotstillError

_siblings_loaded: dict[Path, str] = {}
"""The files that references have imported beside their own, with the hash of what was imported."""


@dataclass(frozen=True)
class PythonReference:
    """A function in a file. Its errors are of the kind that the caller asks for."""

    file: Path
    """Absolute."""
    function: str
    error: type[PotstillError]

    @classmethod
    def parse(cls, text: str, directory: Path, error: type[PotstillError]) -> "PythonReference":
        """Read `file.py:function`; a relative path starts at `directory`. The file must exist; nothing is imported."""
        path, colon, function = text.rpartition(":")
        if not colon or not path.endswith(".py") or not function.isidentifier():
            raise error(f"{text!r} is no reference to a function; write it as path/to/file.py:function")
        file = (directory / Path(path).expanduser()).resolve()
        if not file.is_file():
            raise error(f"{text}: there is no file {file}{_nearest_file(file)}; paths start at the recipe's folder")
        return cls(file, function, error)

    def __str__(self) -> str:
        return f"{self.file}:{self.function}"

    def call(self, arguments: Mapping[str, object], offered: Mapping[str, object] | None = None) -> object:
        """Call the function with `arguments`, and with those of `offered` that it has parameters for.

        Unknown arguments, and whatever is raised in the user's code, become the reference's kind of error.
        """
        function = self.load()
        known, takes_any = self.defaults(), self._takes_any_name()
        unknown = [name for name in arguments if name not in known and not takes_any]
        if unknown:
            raise self.error(f"{self}: the function has no parameter {unknown[0]!r}; {_nearest(unknown[0], known)}")
        extra = {name: value for name, value in (offered or {}).items() if name in known or takes_any}
        with self.users_code():
            return function(**{**extra, **arguments})

    def defaults(self) -> dict[str, object]:
        """What the function can be given by name, and what it takes when not; `inspect.Parameter.empty` for a must."""
        parameters = inspect.signature(self.load()).parameters.values()
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {parameter.name: parameter.default for parameter in parameters if parameter.kind in by_name}

    def _takes_any_name(self) -> bool:
        parameters = inspect.signature(self.load()).parameters.values()
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)

    def load(self) -> Callable[..., object]:
        """Import the file, once for each content of it and its siblings, and take the function."""
        module = self._module()
        function = getattr(module, self.function, None)
        if not callable(function):
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            what = "has no function" if function is None else "has something else than a function called"
            raise self.error(f"{self.file} {what} {self.function!r}; {_nearest(self.function, names)}")
        return function

    def sha256(self) -> str:
        """Over the file and over the files beside it that it imports, and that those import."""
        digest = hashlib.sha256()
        for name, file in sorted(self._sources().items()):
            digest.update(f"{name}\0".encode() + file.read_bytes() + b"\0")
        return digest.hexdigest()

    def _module(self) -> ModuleType:
        name = (
            f"potstill_user_{self.file.stem}_{hashlib.sha256(f'{self.file}{self.sha256()}'.encode()).hexdigest()[:12]}"
        )
        if name in sys.modules:
            return sys.modules[name]
        self._forget_other_siblings()
        spec = importlib.util.spec_from_file_location(name, self.file)
        assert spec is not None
        assert spec.loader is not None  # a .py file always has a loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            with self.users_code():
                spec.loader.exec_module(module)
        except PotstillError:
            del sys.modules[name]
            raise
        return module

    def _forget_other_siblings(self) -> None:
        """Make way for this file's siblings where others of the same name, or an older content, are imported."""
        for name, file in self._sources().items():
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            imported = getattr(sys.modules.get(name), "__file__", None)
            known = imported is not None and Path(imported) in _siblings_loaded
            if known and (Path(str(imported)) != file or _siblings_loaded[file] != content):
                del sys.modules[name]
            _siblings_loaded[file] = content

    def _sources(self) -> dict[str, Path]:
        """The file and its siblings by module name, as far as import statements tell."""
        folder = self.file.parent
        found = {self.file.stem: self.file}
        pending = [self.file]
        while pending:
            for name in _imported_names(pending.pop()):
                base = folder / Path(*name.split("."))
                for file in (base.with_suffix(".py"), base / "__init__.py"):
                    if name not in found and file.is_file():
                        found[name] = file
                        pending.append(file)
        return found

    @contextmanager
    def users_code(self) -> Generator[None]:
        """The file's folder on the import path; an error inside is told with the user's own line."""
        folder = str(self.file.parent)
        sys.path.insert(0, folder)
        try:
            yield
        except (Exception, SystemExit) as error:
            if isinstance(error, PotstillError):
                raise
            raise self.error(self._told(error)) from error
        finally:
            sys.path.remove(folder)

    def _told(self, error: BaseException) -> str:
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, SyntaxError) and error.filename is not None:
            return f"{error.filename}:{error.lineno}: {what}\n    {(error.text or '').strip()}"
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if _is_own(Path(frame.filename), self.file.parent)]
        if not own:
            return f"{self}: {what}"
        last = own[-1]
        return f"{last.filename}:{last.lineno}, in {last.name}: {what}\n    {last.line}"


def _imported_names(file: Path) -> Iterator[str]:
    """Every module that a file's import statements may mean, with the packages above it."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        return  # importing it will tell the line
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def _is_own(file: Path, folder: Path) -> bool:
    """Whether it is the user's own; a virtual environment in the folder holds other people's."""
    return file.is_relative_to(folder) and "site-packages" not in file.parts


def _nearest(name: str, names: Collection[str]) -> str:
    match = difflib.get_close_matches(name, names, 1)
    if match:
        return f"did you mean {match[0]!r}?"
    return f"it has {', '.join(names)}" if names else "it has none"


def _nearest_file(file: Path) -> str:
    names = [path.name for path in file.parent.glob("*.py")] if file.parent.is_dir() else []
    match = difflib.get_close_matches(file.name, names, 1)
    return f" (did you mean {match[0]}?)" if match else ""
