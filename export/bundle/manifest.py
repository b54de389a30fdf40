"""What a bundle says of itself: ``manifest.json``, read by its example and by whoever deploys it."""

from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import JsonValue, ValidationError

from ...pipeline.errors import UsageError
from ...pipeline.metric import Metric
from ..measurement import Latency, Machine, Score, Value

VERSION = 1
"""Of the manifest; raised when an older reader could misread it."""
FILE = "manifest.json"


Reads = Literal["images", "sound", "texts"]


class Preparation(Value):
    """What is to be done with samples before the engine: ``float32(samples) * scale + shift``, channel by channel."""

    scale: tuple[float, ...]
    """One a channel; channels are the axis behind the batch. To be rounded to float32 before use; likewise `shift`."""
    shift: tuple[float, ...]
    mean: tuple[float, ...]
    """The same in other words: (samples - mean) / deviation, in the samples' own unit."""
    deviation: tuple[float, ...]


class Decoding(Value):
    """How samples come from image files, as ``images.py`` beside the manifest does it, with Pillow."""

    resize: int
    """To how many pixels the shorter side is brought, bilinearly and antialiased, after turning as EXIF says."""
    size: int
    """Height and width in pixels of the middle that is cut out."""
    colour: Literal["RGB"] = "RGB"
    """Uint8, channels first; grey, CMYK, palette and 16-bit images are converted."""
    background: str
    """What shows through where an image is transparent."""


class Input(Value):
    """One input of the engine."""

    shape: tuple[int | None, ...]
    """None is a free dimension; the first one is the batch."""
    dtype: str
    """That the engine takes, as NumPy names it."""
    sample_dtype: str
    """That samples have as the data source gives them."""
    normalization: Preparation | None
    """None where the engine takes the samples as they are. It is not part of the engine: the caller does it."""
    decoding: Decoding | None = None
    """What makes samples of image files, before the normalization; None where the data source decoded none."""
    rate: int | None = None
    """Of a waveform, how many samples a second it has; None for other inputs."""
    front_end: str | None = None
    """What the engine itself makes of a waveform first, in words; None where that is left to its network."""


class Output(Value):
    """One output of the engine."""

    shape: tuple[int | None, ...]
    dtype: str


class EngineRecord(Value):
    """What runs, and how it is to be opened."""

    target: str
    """Such as ``onnxruntime cpu int8``."""
    runtime: str
    device: str
    precision: str
    threads: int
    settings: dict[str, JsonValue]
    """Of the target, as in the recipe."""
    file: str
    """In this folder; others that it needs are beside it."""
    provider: str
    """What of the runtime runs it, as the runtime calls it."""
    remarks: tuple[str, ...]
    """What the precision alone would not tell."""


class MeasuredRecord(Value):
    """The run's numbers, and the one that was found from this folder alone."""

    score: Score
    """Over the whole test split."""
    score_from_bundle: Score | None
    """By a fresh process that knew nothing but this folder: equal to `score`, or there would be no bundle."""
    latency: tuple[Latency, ...]
    """One a batch size."""
    speedup: float
    """To the teacher's fp32 engine, at the first batch size."""
    file_bytes: int
    peak_memory_bytes: int | None
    machine: Machine
    taken: datetime


class Attribution(Value):
    """What data and weights are whose, as the recipe or the data source says it."""

    data: str
    data_license: str | None
    """None where nothing was said; likewise below."""
    teacher: str
    teacher_license: str | None


class Provenance(Value):
    """Where the engine came from."""

    run: str
    recipe: str
    """The resolved recipe, as YAML."""
    recipe_hash: str
    seed: int
    step: str
    potstill: str


class Manifest(Value):
    """A bundle."""

    version: Literal[1] = VERSION
    name: str
    task: str
    metric: Metric
    labels: tuple[str, ...]
    """Of the outputs, in their order; empty where there are no classes."""
    engine: EngineRecord
    inputs: dict[str, Input]
    """In the engine's order."""
    outputs: dict[str, Output]
    tokenizer: str | None = None
    """The file that makes the inputs of texts, for the package `tokenizers`; None where samples are no texts."""
    measured: MeasuredRecord
    attribution: Attribution
    provenance: Provenance
    files: dict[str, str]
    """sha256 of every file of the bundle but this one, by its path."""

    @property
    def reads(self) -> Reads | None:
        """What the example makes samples of itself; None where it takes them as arrays alone."""
        if self.tokenizer is not None:
            return "texts"
        if any(each.decoding for each in self.inputs.values()):
            return "images"
        return "sound" if any(each.rate for each in self.inputs.values()) else None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a bundle's folder; UsageError where it is none."""
        try:
            return cls.model_validate_json((folder / FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(
                f"{folder}: is no bundle of potstill, or of another version; name another folder"
            ) from error
