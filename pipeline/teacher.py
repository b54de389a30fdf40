"""The run's frozen teacher."""

import hashlib
from collections.abc import Collection, Iterator
from copy import deepcopy
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from .artifact import Artifact
from .augmentation import View
from .data import Batch, moved
from .errors import CacheError
from .fingerprints import code_fingerprint
from .taps import Outputs
from .teacher_cache import LOGITS, CacheSettings, Counts, TeacherCache
from .training import TrainingContext, move, state_of

OUTPUT_CODE = tuple(
    f"pipeline.{name}"
    for name in (
        "augmentation",
        "front_end",
        "normalization",
        "random_regions",
        "sound_augmentation",
        "taps",
        "teacher",
        "teacher_cache",
    )
)
"""The modules whose change can change a teacher's outputs, beside its own."""


class Teacher:
    """A frozen copy of the teacher's model, shared by every stage of a run.

    Where a sample looks the same again, in data without augmentation or with numbered views, its outputs are computed
    once and stored: `folder` outlives the run and serves others, None keeps them in memory.
    """

    def __init__(self, artifact: Artifact, settings: CacheSettings | None = None, folder: Path | None = None) -> None:
        self.artifact = artifact
        self._settings = settings or CacheSettings()
        self._folder = folder
        self._model: nn.Module | None = None
        self._cache: TeacherCache | None = None

    def of(self, artifact: Artifact) -> "Teacher":
        """Another artifact as a teacher, with the same settings and folder."""
        return Teacher(artifact, self._settings, self._folder)

    def model(self, context: TrainingContext) -> nn.Module:
        """The teacher on the run's device, in eval mode, asking for no gradients."""
        if self._model is None:
            self._model = deepcopy(self.artifact.model).eval().requires_grad_(requires_grad=False)
            move(self._model, context.device, torch.channels_last)
        return self._model

    def outputs(self, batch: Batch, taps: Collection[str], context: TrainingContext) -> Outputs:
        """Logits and what flows at the taps for a training batch on the device; stored ones where there are any."""
        repeats = batch.view is None or context.data.views is not None
        if not repeats or (taps and not self._settings.maps):
            return self.live_outputs(batch, taps, context)
        if taps and context.data.train.lengths is not None:
            raise CacheError(
                "`teacher.cache.maps` stores what flows inside the teacher as one block, and these samples are of "
                "unequal length. Mend: leave `maps` out; the teacher's last outputs are stored all the same"
            )
        number = 0 if batch.view is None else batch.view.number
        names = [LOGITS, *taps]
        rows = self._opened_cache(context).rows(
            names, number, batch.index.cpu(), lambda: self._whole_view(batch.view, taps, context)
        )
        there = {name: moved(tensor, context.device) for name, tensor in rows.items()}
        return Outputs(there.pop(LOGITS), there)

    def logits(self, batch: Batch, context: TrainingContext) -> Tensor:
        """The teacher's logits for a training batch on the device, shape (B, classes), in float32."""
        return self.outputs(batch, (), context).logits

    @torch.no_grad()
    def live_outputs(self, batch: Batch, taps: Collection[str], context: TrainingContext) -> Outputs:
        """The same from a forward of just now, whatever is stored."""
        return context.outputs(self.model(context), batch.inputs, taps)

    def usage(self) -> Counts:
        """How often stored outputs served since this was last asked."""
        if self._cache is None:
            return Counts()
        counts, self._cache.counts = self._cache.counts, Counts()
        return counts

    @property
    def stored_bytes(self) -> int:
        """Of the outputs in use, in memory or in files."""
        return 0 if self._cache is None else self._cache.stored_bytes

    def _opened_cache(self, context: TrainingContext) -> TeacherCache:
        if self._cache is None:
            key: dict[str, JsonValue] = {
                "teacher": _weights_sha256(self.artifact.model),
                "structure": self.artifact.blueprint.model_dump(mode="json"),
                "data": context.data.train.sha256(),
                "views": context.data.views,
                "classes": context.data.num_classes,
                "precision": context.precision,
                "device": context.device.type,
                "torch": torch.__version__,
                "code": code_fingerprint(*OUTPUT_CODE),
                "dtype": self._settings.dtype,
                "top_k": self._settings.top_k,
            }
            self._cache = TeacherCache(
                self._settings, self._folder, key, len(context.data.train), processes=context.processes
            )
        return self._cache

    def _whole_view(
        self, view: View | None, taps: Collection[str], context: TrainingContext
    ) -> Iterator[dict[str, Tensor]]:
        split, size = context.data.train, context.data.batch_size
        for start in range(0, len(split), size):
            index = torch.arange(start, min(start + size, len(split)))
            outputs = self.live_outputs(context.to_device(split.batch(index, view=view)), taps, context)
            yield {LOGITS: outputs.logits, **outputs.maps}


def _weights_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state_of(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
