"""Image classifiers of the package torchvision."""

from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar, Literal

from torch import nn

from ..errors import ModelError
from .library import LibraryNetwork, call
from .network import Image

CHANNELS = 3
WITH_AUXILIARY_OUTPUTS = ("googlenet", "inception_v3")
"""They return several outputs in training unless they are asked not to."""


class Torchvision(LibraryNetwork, frozen=True, extra="forbid"):
    """Any classifier of torchvision by its name there, `torchvision:resnet18` in short (extra `vision`)."""

    package: ClassVar[str] = "torchvision"
    given: ClassVar[tuple[str, ...]] = ("weights", "num_classes", "weights_backbone")

    name: Literal["torchvision"] = "torchvision"

    def is_known(self, library: ModuleType) -> bool:
        """Among the classifiers; detectors and segmenters are none."""
        return self.model in self.names(library)

    def names(self, library: ModuleType) -> Sequence[str]:
        """Of the classifiers."""
        return call(library.models, "list_models", module=library.models)

    def made(self, library: ModuleType, image: Image, num_classes: int) -> nn.Module:
        """For images of three channels, with one output."""
        if image[0] != CHANNELS:
            raise ModelError(f"{self.label} takes images of {CHANNELS} channels, and the data has {image[0]}")
        settings = dict(self.arguments)
        if self.model in WITH_AUXILIARY_OUTPUTS:
            settings = {"aux_logits": False, "init_weights": True, **settings}
        return call(library.models, "get_model", self.model, weights=None, num_classes=num_classes, **settings)
