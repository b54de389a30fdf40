"""The frozen value that stages pass on, saved and loaded without pickle."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from .blueprint import Blueprint
from .errors import ArtifactError
from .files import write_atomically
from .quantization import Quantization

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model, how to rebuild it, and how it is quantized. Nobody changes the model of an artifact; they copy it."""

    model: nn.Module
    """Eager, on the CPU, float32 weights."""
    blueprint: Blueprint
    quantization: Quantization | None = None
    lineage: tuple[str, ...] = ()
    """The names of the steps that made it, oldest first."""

    def executable(self, inputs: Mapping[str, Tensor]) -> nn.Module:
        """What the engine is to compute, in eval mode: a copy of the model, under its fake quantizers where it has any.

        `inputs` is an example batch for the capture of a quantized model.
        """
        if self.quantization is None:
            return deepcopy(self.model).eval()
        from .fake_quantization import fake_quantized

        return fake_quantized(self.model, self.quantization, inputs)

    def save(self, folder: Path, inputs: Mapping[str, Tensor]) -> None:
        """Write ``blueprint.json`` and ``model.safetensors``, reload them and compare the outputs for `inputs`.

        Raises ArtifactError when the reloaded artifact computes something else.
        """
        from safetensors.torch import save

        header = {
            "version": VERSION,
            "lineage": list(self.lineage),
            "blueprint": self.blueprint.model_dump(mode="json"),
            "quantization": None if self.quantization is None else self.quantization.model_dump(mode="json"),
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "blueprint.json", json.dumps(header, indent=1).encode())
        state = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.model.state_dict().items()
        }
        write_atomically(folder / "model.safetensors", save(state))
        self._compare(type(self).load(folder), inputs)

    def _compare(self, reloaded: "Artifact", inputs: Mapping[str, Tensor]) -> None:
        ours, theirs = self._outputs(inputs), reloaded._outputs(inputs)
        difference = float((ours - theirs).abs().max())
        # Equal weights in an equal structure run the same kernels; a thousandth of float32's precision is left for
        # models whose kernels choose their order of summation anew.
        if not difference <= 1e-4 * max(float(ours.abs().max()), 1.0):
            raise ArtifactError(
                f"the saved artifact computes something else than the model it was saved from: outputs differ by up to "
                f"{difference:g}. The model holds state outside its parameters and buffers, or its function builds a "
                "different network on each call."
            )

    @torch.no_grad()
    def _outputs(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return cast(Tensor, self.executable(inputs)(*inputs.values()))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Rebuild the artifact saved in `folder`; raises ArtifactError where its files are missing or do not fit."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

        try:
            header = json.loads((folder / "blueprint.json").read_text())
            state = cast(Mapping[str, Tensor], load_file(folder / "model.safetensors"))
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"{folder} holds no readable artifact: {error}") from error
        if header["version"] > VERSION:
            raise ArtifactError(
                f"{folder} was written by a newer potstill (artifact version {header['version']}, this one reads "
                f"{VERSION}): upgrade potstill to read it"
            )
        blueprint = Blueprint.model_validate(header["blueprint"])
        model = blueprint.build()
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ArtifactError(f"{folder}: the weights do not fit the blueprint: {error}") from error
        stored = header["quantization"]
        quantization = None if stored is None else Quantization.model_validate(stored)
        lineage = tuple(header["lineage"])
        return cls(model=model.eval(), blueprint=blueprint, quantization=quantization, lineage=lineage)
