"""Finding the layers that a blueprint's edits name."""

from typing import Any

from torch import nn

from .errors import ArtifactError


def submodule(model: nn.Module, path: str) -> Any:
    """The layer that an edit names. Raises ArtifactError where the model has none there."""
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ArtifactError(
            f"the blueprint edits a layer `{path}` that the model does not have; the code of the model has changed "
            "since the artifact was made"
        ) from error
