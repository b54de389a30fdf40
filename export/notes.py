"""What an exported file says of itself, in ONNX's metadata; read without torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

OURS = "potstill."
"""Begins the keys of our notes."""


def notes(model: "ModelProto") -> dict[str, str]:
    """Our notes by key without its beginning; empty for a file of others."""
    ours = (entry for entry in model.metadata_props if entry.key.startswith(OURS))
    return {entry.key.removeprefix(OURS): entry.value for entry in ours}
