"""Sound clips: `train.npz` and `test.npz` with clips end to end, or a folder of sound files for each class."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ..data import DataSource, DrawsOf, Split, stratified, whole_groups
from ..data_checks import RawSamples, Reading, Samples
from ..errors import DataError
from ..front_end import FrontEnd, LogMel
from ..normalization import Normalization
from ..progress import Progress
from ..recordings import ENDINGS, FULL_SCALE, Clip, fitted, recording
from ..sound_augmentation import SoundAugmentation, SoundDraws
from .npz import arrays_of

AUDIO = "audio"
"""The input's name."""
NAMED = 8
"""How many files a message lists."""
SAVED = "audio=clips end to end, length=samples of each, y=labels"


def _form(value: object) -> str:
    return "none" if isinstance(value, str) else "log-mel"


AnyFrontEnd = Annotated[
    Annotated[Literal["none"], Tag("none")] | Annotated[LogMel, Tag("log-mel")], Discriminator(_form)
]


@dataclass(frozen=True)
class _Clips:
    """Clips of one split, as they were read."""

    clips: list[Clip]
    labels: NDArray[np.int64]
    groups: NDArray[Any] | None
    origin: str


class Sound(DataSource, frozen=True, extra="forbid"):
    """Sound clips of unequal length, brought to one: waveforms `audio` (samples,) from -1 to 1.

    `path` holds `train.npz` and `test.npz`, or folders `train` and `test` with a folder of sound files for each class,
    or the classes' folders themselves.
    """

    source: Literal["sound"] = "sound"
    path: Path
    """The folder; a relative path starts at the recipe's."""
    rate: Annotated[int, Field(ge=1000, le=192_000)]
    """Samples a second of all clips; files of another rate are refused, since nothing is resampled."""
    seconds: Annotated[float, Field(gt=0, le=60)] = 1.0
    """How long every clip becomes: shorter ones get silence on both sides, of longer ones the middle is taken."""
    front_end: AnyFrontEnd = LogMel()
    """What makes maps (1, mels, frames) of waveforms, inside of every model; `none` lets models take waveforms."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Names in order of the numbers in `y`; of folders, their order, which is the alphabet's unless given."""
    test: Annotated[int, Field(ge=0)] = 0
    """How many clips become the test split where `path` has the classes' folders themselves."""
    split_by: str | None = None
    """What keeps clips together when some are held out: the name of an array such as `speaker`, or for files a regular
    expression whose group finds it in their names, such as `_([a-z]+)_`."""
    normalize: Literal["none"] = "none"  # pyright: ignore[reportIncompatibleVariableOverride] # frozen, so a narrower type is safe
    """16-bit samples become numbers from -1 to 1; the front end normalises its maps by itself."""
    augment: tuple[SoundAugmentation, ...] = ()  # pyright: ignore[reportIncompatibleVariableOverride] # likewise
    """Random changes of the training clips, new in every epoch."""

    @field_validator("split_by")
    @classmethod
    def _is_an_expression(cls, text: str | None) -> str | None:
        try:
            re.compile(text or "")
        except re.error as error:
            raise ValueError(f"is neither a name nor a regular expression: {error}") from error
        return text

    @model_validator(mode="after")
    def _length_fits(self) -> Self:
        if self.samples < 1:
            raise ValueError(f"`seconds: {self.seconds:g}` at {self.rate} samples a second holds no sample")
        return self

    @property
    def samples(self) -> int:
        """Of every clip."""
        return round(self.seconds * self.rate)

    def read(self, directory: Path, progress: Progress) -> Reading:
        """All splits, as int16 (N, samples)."""
        if self.front_end != "none":
            FrontEnd(settings=self.front_end, rate=self.rate).check(self.samples)
        folder = directory / self.path.expanduser()
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; `data.path` must name the folder of the clips")
        train, test, classes = self._splits(folder)
        cropped = sum(len(clip) > self.samples for split in (train, test) for clip in split.clips)
        count = len(train.clips) + len(test.clips)
        title = f"{folder.name}, {self.seconds:g} s at {self.rate:,} Hz" + (
            f" ({cropped:,} of {count:,} clips cropped)," if cropped else ","
        )
        return Reading(self._raw(train), self._raw(test), title, classes=classes)

    def _splits(self, folder: Path) -> tuple[_Clips, _Clips, tuple[str, ...] | None]:
        if (folder / "train.npz").exists() or (folder / "test.npz").exists():
            self._demand_no_test(f"{folder} has a test.npz")
            return self._from_npz(folder / "train.npz"), self._from_npz(folder / "test.npz"), self.classes
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            self._demand_no_test(f"{folder} has a folder `test`")
            classes = self._class_names(folder / "train")
            return self._from_files(folder / "train", classes), self._from_files(folder / "test", classes), classes
        classes = self._class_names(folder)
        return *self._parted(self._from_files(folder, classes)), classes

    def _demand_no_test(self, found: str) -> None:
        if self.test:
            raise DataError(f"{found}, so `test: {self.test}` has nothing to hold out; leave it out")

    def _parted(self, every: _Clips) -> tuple[_Clips, _Clips]:
        """Train and test, by whole groups where there are some."""
        count = len(every.clips)
        if not 0 < self.test <= count // 2:
            raise DataError(
                f"{every.origin} has neither folders `train` and `test` nor train.npz and test.npz, so `test` must say "
                f"how many of its {count:,} clips are held out for measuring, at most half: `test: {count // 5}`"
            )
        if every.groups is None:
            held, rest = stratified(torch.as_tensor(every.labels), self.test)
        else:
            numbers = np.unique(every.groups, return_inverse=True)[1]
            held, rest = whole_groups(torch.as_tensor(numbers.astype(np.int64)), self.test)
        if not len(rest):
            raise DataError(f"{every.origin}: `split_by: {self.split_by}` finds one group in all of {count:,} clips")
        return _at(every, rest.numpy(), "train"), _at(every, held.numpy(), "test")

    def _from_npz(self, file: Path) -> _Clips:
        keys = ("audio", "length", "y", *((self.split_by,) if self.split_by else ()))
        audio, length, y, *groups = arrays_of(file, keys, SAVED).values()
        if audio.ndim != 1 or audio.dtype.kind not in "if" or (audio.dtype.kind == "i" and audio.dtype != np.int16):
            raise DataError(
                f"{file}: `audio` is {audio.dtype} of shape {audio.shape}; it must hold all clips end to end in one "
                "dimension, as int16 or as fractions from -1 to 1"
            )
        if length.shape != y.shape[:1] or length.dtype.kind not in "iu" or (len(length) and int(length.min()) < 1):
            raise DataError(
                f"{file}: `length` is {length.dtype} of shape {length.shape} for {len(y)} labels; it must hold how "
                "many samples each clip has, one or more"
            )
        if int(length.sum()) != len(audio):
            raise DataError(
                f"{file}: the lengths add up to {int(length.sum()):,}, but `audio` has {len(audio):,} samples"
            )
        clips = np.split(_as_int16(audio, file), np.cumsum(length)[:-1])
        return _Clips(clips, y, groups[0] if groups else None, str(file))

    def _class_names(self, folder: Path) -> tuple[str, ...]:
        found = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith((".", "_")))
        if len(found) < 2:
            raise DataError(
                f"{folder} has {len(found)} folders; there must be one with sound files for each class, or train.npz "
                "and test.npz"
            )
        if self.classes is not None and sorted(self.classes) != found:
            raise DataError(f"{folder} has the folders {', '.join(found)}, and `classes` names others; name the same")
        return self.classes or tuple(found)

    def _from_files(self, folder: Path, classes: Sequence[str]) -> _Clips:
        """Every sound file of the classes' folders. DataError names those that cannot be read, all at once."""
        unknown = {each.name for each in folder.iterdir() if each.is_dir()} - {*classes}
        unknown = {name for name in unknown if not name.startswith((".", "_"))}
        if unknown:
            raise DataError(f"{folder} has the folders {', '.join(sorted(unknown))}, which are no classes of train")
        files = [(file, number) for number, name in enumerate(classes) for file in _sound_files(folder / name)]
        clips: list[Clip] = []
        problems: list[str] = []
        for file, _ in files:
            try:
                clips.append(recording(file, self.rate))
            except DataError as error:
                problems.append(str(error))
        if problems:
            more = [f"… and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
            lines = "\n  ".join([*problems[:NAMED], *more])
            raise DataError(
                f"{folder}: {len(problems)} of {len(files):,} files cannot be used:\n  {lines}\n"
                "Mend: repair or remove them; bring all to one rate first, and name it by `rate`"
            )
        groups = None if self.split_by is None else _groups([file for file, _ in files], self.split_by)
        labels = np.array([number for _, number in files], np.int64)
        return _Clips(clips, labels, groups, str(folder))

    def _raw(self, split: _Clips) -> RawSamples:
        audio = np.zeros((len(split.clips), self.samples), np.int16)
        for row, clip in zip(audio, split.clips, strict=True):
            row[:] = fitted(clip, self.samples)
        return RawSamples({AUDIO: audio}, split.labels, split.origin, waveforms=frozenset({AUDIO}), groups=split.groups)

    def _normalizations(self, train: Samples) -> dict[str, Normalization]:
        return {AUDIO: Normalization((1 / FULL_SCALE,), (0.0,))}

    def _rates(self) -> dict[str, int]:
        return {AUDIO: self.rate}

    @torch.no_grad()
    def _front_end(self, train: Split) -> FrontEnd | None:
        if self.front_end == "none":
            return None
        plain = FrontEnd(settings=self.front_end, rate=self.rate)
        module, count = plain.module(), 0
        total = squares = 0.0
        for batch in train.batches(256):
            energies = module(batch.inputs[AUDIO]).double()
            total, squares = total + float(energies.sum()), squares + float(energies.square().sum())
            count += energies.numel()
        mean = total / count
        deviation = max(squares / count - mean * mean, 1e-12) ** 0.5
        # Rounded, so that another number of threads, which adds in another order, gives the same model.
        return plain.model_copy(update={"mean": round(mean, 2), "deviation": max(round(deviation, 2), 0.01)})

    def _draws(self, train: Samples) -> DrawsOf:
        return SoundDraws.of

    def _check_augment(self, train: Samples) -> None:
        if self.views is not None and not self.augment:
            raise DataError(f"{train.origin}: `views` counts augmented views, but nothing is augmented; leave it out")


def _at(every: _Clips, index: NDArray[np.int64], split: str) -> _Clips:
    groups = None if every.groups is None else every.groups[index]
    positions: list[int] = index.tolist()
    clips = [every.clips[at] for at in positions]
    return replace(every, clips=clips, labels=every.labels[index], groups=groups, origin=f"{every.origin} ({split})")


def _as_int16(audio: NDArray[Any], file: Path) -> Clip:
    if audio.dtype == np.int16:
        return audio
    if not np.isfinite(audio).all() or (len(audio) and np.abs(audio).max() > 1):
        raise DataError(
            f"{file}: `audio` holds fractions that are not from -1 to 1; divide by the largest, or give int16"
        )
    return np.rint(audio * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def _sound_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; every split needs a folder for each class")
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
    if not found:
        raise DataError(f"{folder} holds no sound files ({', '.join(ENDINGS)})")
    return found


def _groups(files: Sequence[Path], expression: str) -> NDArray[Any]:
    pattern = re.compile(expression)
    if pattern.groups < 1:
        raise DataError(
            f"split_by: `{expression}` has no group in parentheses; it is to find in a file's name what keeps clips "
            "together, as `_([a-z]+)_` does"
        )
    found: list[str] = []
    for file in files:
        match = pattern.search(file.name)
        if match is None or match[1] is None:
            raise DataError(f"split_by: `{expression}` finds nothing in the name of {file}; it must fit every file")
        found.append(match[1])
    return np.array(found)
