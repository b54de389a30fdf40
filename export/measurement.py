"""What is measured and found about an engine: the values that report.json holds as they are."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from ..pipeline.bench import Aim, Verdict
from ..pipeline.metric import ACCURACY, Metric

SAMPLES_BEYOND = 10
"""A percentile is given only where at least so many samples lie beyond it."""
P50_SAMPLES, P90_SAMPLES, P99_SAMPLES = (SAMPLES_BEYOND * times for times in (2, 10, 100))
"""The samples that each percentile takes by that rule."""

WILSON_Z = 1.959964
"""The two-sided 95 % quantile of the normal distribution."""


class Value(BaseModel):
    """Frozen, and strict about its keys, so that a report from elsewhere is either understood or refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Value):
    """A 95 % confidence interval."""

    low: float
    high: float


def wilson_interval(hits: int, count: int) -> Interval:
    """Wilson's score interval of a share (1927): right also where few miss, unlike the normal approximation."""
    share, z = hits / count, WILSON_Z
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(low=max(0.0, centre - half), high=min(1.0, centre + half))


class GpuFacts(Value):
    """A GPU that engines can run on."""

    name: str
    compute_capability: str
    """Such as ``9.0``."""
    memory_bytes: int
    multiprocessors: int
    driver: str | None
    """Its version; None where NVML does not tell, likewise below."""
    driver_cuda: str | None
    """The newest CUDA that the driver runs."""
    cuda: str | None
    """The CUDA that torch is built with."""


class Machine(Value):
    """Where a measurement was taken. What could not be found out says ``unknown`` or is None."""

    cpu_model: str
    cpu_flags: tuple[str, ...]
    """Only those that decide which kernels run, such as ``avx512_vnni``."""
    cores: int
    """Physical ones; the logical ones where only those are known."""
    threads: int
    """That this process may use."""
    memory_bytes: int | None
    system: str
    python: str
    libraries: dict[str, str]
    load: tuple[float, float, float] | None
    """Runnable processes on average over 1, 5 and 15 minutes, when the facts were taken."""
    gpu: str | None
    gpus: tuple[GpuFacts, ...] = ()
    """Empty in reports of older versions, too."""

    def identity(self) -> dict[str, JsonValue]:
        """Everything but the load: measurements taken under equal identities may be set beside each other."""
        return self.model_dump(mode="json", exclude={"load"})


class Accuracy(Value):
    """How many samples of a split an engine got right."""

    correct: int = Field(ge=0)
    count: int = Field(ge=1)

    @model_validator(mode="after")
    def _no_more_right_than_there_are(self) -> Self:
        if self.correct > self.count:
            raise ValueError(f"{self.correct} correct of {self.count}")
        return self

    @property
    def metric(self) -> Metric:
        """The share that is right, of a classification."""
        return ACCURACY

    @property
    def value(self) -> float:
        """The share that is right."""
        return self.correct / self.count

    @property
    def interval(self) -> Interval:
        """Wilson's."""
        return wilson_interval(self.correct, self.count)


class MeanScore(Value):
    """A metric that is made of the mean of the samples' values."""

    metric: Metric
    count: int = Field(ge=1)
    """Samples."""
    value: float
    interval: Interval
    """By drawing the samples anew."""


Score = Accuracy | MeanScore
"""How good an engine is over a split."""


class ScoreChange(Value):
    """How much higher the second of two engines' metric is; of shares, 0.01 is one point."""

    metric: Metric
    value: float
    interval: Interval

    @property
    def significant(self) -> bool:
        """Whether the 95 % interval leaves out no change."""
        return self.interval.low > 0 or self.interval.high < 0

    @property
    def improves(self) -> bool:
        """Whether it is for the better, by the metric's own direction."""
        return self.metric.improves(self.value)


class Latency(Value):
    """One engine at one batch size, one call after the other."""

    batch: int
    samples: int
    p50_ms: float
    p50_interval: Interval
    p90_ms: float | None
    """None below 100 samples."""
    p90_interval: Interval | None = None
    """None in reports of older versions, too; likewise below."""
    p99_ms: float | None
    """None below 1,000 samples."""
    p99_interval: Interval | None = None
    mean_ms: float
    throughput: float
    """Inputs a second: the batch size over the mean latency."""
    outliers: int
    """Samples far above the median (5 standard deviations, judged by the median deviation). Counted, not dropped."""


class Comparison(Value):
    """A candidate beside a baseline, timed in turns on the same machine at the same time."""

    batch: int
    ratio: float
    """The baseline's p50 over the candidate's, as the median of all turns: above 1, the candidate is faster.

    What slowed the machine during a turn cancels in the turn's own ratio. The quotient of the two p50 over all turns
    can differ, and says less.
    """
    interval: Interval
    """Of the ratio."""
    verdict: Verdict
    turns: int | None = None
    """In how many turns both were timed; None in reports of older versions."""
    baseline: Latency
    candidate: Latency


class OperatorTime(Value):
    """One operator of the graph that a runtime runs, in the runtime's own profile."""

    layer: str
    """The module path it came from; empty for operators that the runtime put in itself."""
    operator: str
    """As the runtime calls it, such as ``QLinearConv``."""
    ms: float
    """The median of its calls. Profiling slows small operators down: for shares, not for latencies."""


class Gate(Value):
    """A step's engine beside the one of the step before, and why it is not faster where it is not."""

    comparison: Comparison
    compresses: bool
    """Whether the step is there to make the engine faster or smaller."""
    aim: Aim = "speed"
    """Which of the two."""
    diagnosis: tuple[str, ...]
    """Sentences; empty where the engine is faster or need not be, and for steps that do not compress."""


class Parity(Value):
    """How close an engine's outputs are to those of the model it was built from."""

    reference: str
    samples: int
    max_absolute: float
    max_relative: float
    """The largest difference over the largest reference output."""
    mean_relative: float
    """The mean difference over the standard deviation of the reference outputs."""
    agreement: float | None
    """The share of samples with the same prediction; None where outputs are not the logits of classes."""
    passed: bool
    limit: str
    """The rule in words."""


LayerType = Literal["int8", "int8_weights", "int4_weights", "fp8", "fp16", "bf16", "float"]


class LayerPrecision(Value):
    """In which precision a runtime runs one layer."""

    name: str
    kind: str
    """The ONNX operator of the layer as exported, such as ``Conv``."""
    precision: LayerType
    macs: int
    """For one sample."""
    reason: str
    """Why a layer is in float; for any other, the operator that runs it."""
    on_purpose: bool = False
    """Whether the model itself is quantized without this layer, so that no engine could run it otherwise."""


class Audit(Value):
    """What became of every convolution and linear layer when the runtime had optimised the graph."""

    layers: tuple[LayerPrecision, ...]
    precision: LayerType = "int8"
    """What the engine was built for."""
    int8_share: float
    """Of all multiply-accumulates, what runs in that precision."""
    min_int8_share: float | None
    """What the target demands of the layers that are not in float on purpose; None where it demands nothing."""


class DeviceState(Value):
    """What a GPU tells of itself at one moment; None where it does not tell."""

    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    throttling: tuple[str, ...]
    """Why its clock is held back, such as ``power cap``; empty where it is not."""


class NotMeasured(Value):
    """A number that could not be taken, and why."""

    reason: str


class Energy(Value):
    """What one sample costs, over a long row of single queries."""

    source: Literal["NVML", "RAPL"]
    """NVIDIA's counter of the whole GPU, or Intel's of the processor's packages."""
    millijoules: float
    """For one sample, with what the idle device takes subtracted."""
    idle_w: float
    busy_w: float
    seconds: float
    samples: int


class OfflinePoint(Value):
    """Throughput at one batch size."""

    batch: int
    throughput: float
    """Samples a second."""
    interval: Interval


class Offline(Value):
    """MLPerf's offline scenario: all samples are there at once, in batches of the best size."""

    best: OfflinePoint
    sweep: tuple[OfflinePoint, ...]
    """By rising batch size."""
    knee: int
    """The smallest batch size that reaches nine tenths of the best throughput."""


class ServerTrial(Value):
    """Queries that arrive by chance at one rate, and how long the slowest of them waited."""

    rate: float
    """Queries a second, one sample each."""
    queries: int
    seconds: float
    p50_ms: float
    p99_ms: float | None
    """From a query's arrival to its answer. None where the trial was broken off: more than one in a hundred of its
    queries had already missed the bound."""
    p99_interval: Interval | None = None
    met: bool


class Server(Value):
    """MLPerf's server scenario: queries arrive by a Poisson process, and one engine answers them in turn."""

    bound_ms: float
    """That the p99 has to meet."""
    max_batch: int = 1
    """How many of the queries that wait are answered by one run, at most."""
    best: ServerTrial | None
    """At the highest rate that meets it, replayed for a longer time; None where none does."""
    trials: tuple[ServerTrial, ...]
    """Of the search, in the order in which they were made."""
    replays: tuple[ServerTrial, ...] = ()
    """At the rate that was found, and at lower ones until one held for the longer time."""


class Ranked(Value):
    """A final engine in the row of all of them, timed in turns at the first batch size that they share."""

    target: str
    comparison: Comparison
    """Beside the fastest one; the fastest is compared with itself."""


class EngineMeasurement(Value):
    """Everything the report says of one engine."""

    target: str
    """Runtime, device and precision, such as ``onnxruntime cpu int8``."""
    runtime: str
    device: str
    precision: str
    threads: int
    settings: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """The target as the recipe has it, with every default; empty in reports of older versions."""
    machine: Machine | None = None
    """Where it was measured, if not where the rest of its report was."""
    file: str
    """Where the engine lies, from the run's folder."""
    file_bytes: int
    score: Score
    """Of this engine over the whole test split."""
    latency: tuple[Comparison, ...]
    """One a batch size, beside the baseline; the baseline itself is compared with itself."""
    peak_memory_bytes: int | None
    """Peak resident memory of a process that does nothing but run this engine, interpreter and runtime included."""
    parity: Parity
    audit: Audit | None
    """None for engines that were not asked for int8."""
    remarks: tuple[str, ...] = ()
    """What the engine's precision alone would not tell."""
    device_latency: tuple[Latency, ...] = ()
    """One a batch size, by the device's own clock; empty on CPUs, whose only clock is the host's."""
    device_memory_bytes: int | None = None
    """What the engine holds of the GPU's memory; None on CPUs."""
    device_states: tuple[DeviceState, DeviceState] | None = None
    """Before and after the timing; None on CPUs."""
    energy: Energy | NotMeasured | None = None
    """None in reports of older versions."""
    offline: Offline | None = None
    """None where the target does not ask for it; likewise below."""
    server: Server | None = None
    operators: tuple[OperatorTime, ...] | NotMeasured = ()
    """The operators that the runtime runs at the first batch size, by one profile; empty in older reports."""
