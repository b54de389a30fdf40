"""Networks that other packages bring, by their names there."""

import difflib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field
from torch import nn

from ..errors import MissingDependency, ModelError
from .network import Image, ImageNetwork

Arguments = dict[str, bool | int | float | str]


class LibraryNetwork(ImageNetwork, ABC, frozen=True, extra="forbid"):
    """A network of a package that is imported when the network is built; its weights are never downloaded."""

    package: ClassVar[str]
    given: ClassVar[tuple[str, ...]]
    """Arguments that are not the recipe's to give."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$")]
    """The name that the package knows it by."""
    arguments: Arguments = Field(default_factory=Arguments)
    """Given to the package's function by name."""

    @property
    def label(self) -> str:
        """As a recipe says it in short."""
        return f"{self.name}:{self.model}"

    def source(self) -> str:
        """Another version may make another network of the same name."""
        imported(self.package)
        return f"{self.package} {importlib.metadata.version(self.package)}"

    def build(self, image: Image, num_classes: int) -> nn.Module:
        """ModelError for an unknown name or argument; MissingDependency where the package does not import."""
        library = imported(self.package)
        if not self.is_known(library):
            raise ModelError(
                f"{self.label}: {self.package} has no such model; {_near(self.model, self.names(library))}"
            )
        taken = [name for name in self.arguments if name in self.given]
        if taken:
            raise ModelError(
                f"{self.label}: `arguments` may not give {', '.join(taken)}: the data settles shapes, and "
                "`teacher.weights` names a local .safetensors file of weights"
            )
        try:
            return self.made(library, image, num_classes)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ModelError(
                f"{self.label} cannot be built for images {'x'.join(map(str, image))} with arguments "
                f"{self.arguments}: {type(error).__name__}: {error}"
            ) from error

    @abstractmethod
    def is_known(self, library: ModuleType) -> bool:
        """Whether the package has the model."""

    @abstractmethod
    def names(self, library: ModuleType) -> Sequence[str]:
        """Of all classifiers that the package has."""

    @abstractmethod
    def made(self, library: ModuleType, image: Image, num_classes: int) -> nn.Module:
        """The package's network with new weights."""

    def scaled(self, *, width: float, depth: float) -> Self:
        """It has the size that its name says."""
        if (width, depth) != (1, 1):
            raise ModelError(
                f"{self.label} is of one size, so no student of another width or depth can be derived from it; name "
                f"the student's own network, such as another model of {self.package}"
            )
        return self


def imported(package: str) -> ModuleType:
    """The package; MissingDependency where it is not installed or does not import, with the reason."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"models of {package} need packages that are not installed ({error.name} is missing): "
            "pip install 'potstill[vision]'"
        ) from error
    except Exception as error:
        raise MissingDependency(
            f"{package} {importlib.metadata.version(package)} is installed but does not import beside torch "
            f"{importlib.metadata.version('torch')} ({type(error).__name__}: {_first_line(error)}). torchvision, which "
            "timm needs too, must be built for the very torch that is there, `+cpu` and `+cu…` included: install torch "
            "and torchvision again, together and from one index"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _near(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, names, 3)
    return f"did you mean {' or '.join(found)}?" if found else f"it has {len(names)}, such as {', '.join(names[:3])}"


def call(library: ModuleType, function: str, *arguments: Any, **named: Any) -> Any:
    """A function of a package whose types are not known here."""
    return getattr(library, function)(*arguments, **named)
