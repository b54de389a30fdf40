"""Image classifiers of the package timm."""

from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar, Literal

from torch import nn

from .library import LibraryNetwork, call
from .network import Image


class Timm(LibraryNetwork, frozen=True, extra="forbid"):
    """Any classifier of timm by its name there, `timm:resnet50` in short (extra `vision`)."""

    package: ClassVar[str] = "timm"
    given: ClassVar[tuple[str, ...]] = ("pretrained", "num_classes", "in_chans", "checkpoint_path")

    name: Literal["timm"] = "timm"

    def is_known(self, library: ModuleType) -> bool:
        """What stands behind a dot names weights, which are not loaded."""
        return bool(call(library, "is_model", self.model.partition(".")[0]))

    def names(self, library: ModuleType) -> Sequence[str]:
        """Without those of weights."""
        return call(library, "list_models")

    def made(self, library: ModuleType, image: Image, num_classes: int) -> nn.Module:
        """For the image's channels; models of one image size take theirs by `arguments: {img_size: …}`."""
        settings = {**self.arguments, "num_classes": num_classes, "in_chans": image[0]}
        return call(library, "create_model", self.model, pretrained=False, **settings)
