"""A comparison as a value that other programs read: ``compare.json``."""

from datetime import datetime
from typing import Literal, Self

from ...export.measurement import Energy, Interval, Latency, Machine, NotMeasured, Score, ScoreChange, Value
from ..bench import Verdict
from ..differences import Speedup
from .asked import Judgement
from .compare import AgainstFirst, Compared
from .contender import Contender, Run, Source
from .layers import LayerComparison
from .pareto import Standing

VERSION = 1
FILE = "compare.json"


class SourceRecord(Value):
    """A run or a file of profiles."""

    letter: str
    kind: Literal["run", "profile"]
    path: str
    name: str
    started: datetime
    machine: Machine
    machine_number: int
    """Equal for sources whose latencies may be set against each other."""


class SpeedupRecord(Value):
    """How many times faster one engine is than another."""

    ratio: float
    interval: Interval
    verdict: Verdict

    @classmethod
    def of(cls, speedup: Speedup) -> Self:
        """The same value."""
        return cls(ratio=speedup.ratio, interval=speedup.interval, verdict=speedup.verdict)


class RivalRecord(Value):
    """An engine that is no slower and no worse, and better in one of both."""

    mark: str
    speedup: SpeedupRecord
    score: ScoreChange
    beyond_noise: bool


class EngineRecord(Value):
    """One engine with its numbers. What was not measured is None."""

    mark: str
    source: str
    """The letter."""
    machine_number: int
    main: bool
    """Whether it is what its run stands for, or a profiled file."""
    name: str
    target: str
    threads: int
    file: str
    file_bytes: int | None
    score: Score | None
    latency: tuple[Latency, ...]
    peak_memory_bytes: int | None
    energy: Energy | NotMeasured | None
    on_front: bool | None
    """Of metric against p50 at the comparison's batch size, among engines of its machine and data; None where it has no
    place there."""
    rivals: tuple[RivalRecord, ...]
    """On the front, that beat it."""


class LayerRecord(Value):
    """One layer in both engines, in milliseconds of their p50."""

    layer: str
    """Its module path; empty for operators that the runtime put in itself."""
    first_ms: float
    ms: float
    verdict: Verdict


class AgainstFirstRecord(Value):
    """A main engine beside the first one. A None has its reason beside it."""

    mark: str
    score: ScoreChange | None
    score_reason: str
    speedup: SpeedupRecord | None
    speedup_reason: str
    file_ratio: float | None
    layers: tuple[LayerRecord, ...]
    layers_reason: str


class BudgetRecord(Value):
    """A line in the chart."""

    axis: Literal["p50_ms", "metric"]
    limit: float
    label: str


class ComparisonRecord(Value):
    """Everything that a comparison says."""

    version: Literal[1] = VERSION
    kind: Literal["comparison"] = "comparison"
    sources: tuple[SourceRecord, ...]
    batch: int
    """At which engines are set against each other."""
    noise_floor: float
    """The smallest difference of latency that counts, as a share."""
    engines: tuple[EngineRecord, ...]
    against_first: tuple[AgainstFirstRecord, ...]
    budgets: tuple[BudgetRecord, ...]
    judgements: tuple[Judgement, ...]

    @classmethod
    def of(cls, compared: Compared) -> Self:
        """As it is written."""
        places = {each.engine.mark: each for each in compared.standings}
        main = {each.mark for each in compared.main}
        return cls(
            sources=tuple(_source(compared, source) for source in compared.sources),
            batch=compared.batch,
            noise_floor=compared.noise_floor,
            engines=tuple(_engine(compared, each, places.get(each.mark), main) for each in compared.engines),
            against_first=tuple(map(_against, compared.against_first, compared.layers)),
            budgets=tuple(
                BudgetRecord(axis="p50_ms" if each.is_latency else "metric", limit=each.limit, label=each.label)
                for each in compared.budgets
            ),
            judgements=compared.judgements,
        )


def _source(compared: Compared, source: Source) -> SourceRecord:
    is_run = isinstance(source, Run)
    return SourceRecord(
        letter=source.letter,
        kind="run" if is_run else "profile",
        path=str(source.path),
        name=source.report.name if is_run else source.path.name,
        started=source.report.started if is_run else source.profile.started,
        machine=source.machine,
        machine_number=compared.machine_number(source.machine),
    )


def _engine(compared: Compared, engine: Contender, place: Standing | None, main: set[str]) -> EngineRecord:
    return EngineRecord(
        mark=engine.mark,
        source=engine.letter,
        machine_number=compared.machine_number(engine.machine),
        main=engine.mark in main,
        name=engine.name,
        target=engine.target,
        threads=engine.threads,
        file=engine.file,
        file_bytes=engine.file_bytes,
        score=engine.score,
        latency=engine.latency,
        peak_memory_bytes=engine.peak_memory_bytes,
        energy=engine.measurement.energy if engine.measurement else None,
        on_front=place.on_front if place else None,
        rivals=tuple(
            RivalRecord(
                mark=rival.engine.mark,
                speedup=SpeedupRecord.of(rival.speedup),
                score=rival.score,
                beyond_noise=rival.beyond_noise,
            )
            for rival in (place.rivals if place else ())
        ),
    )


def _against(against: AgainstFirst, layers: LayerComparison) -> AgainstFirstRecord:
    return AgainstFirstRecord(
        mark=against.engine.mark,
        score=against.score,
        score_reason=against.score_reason,
        speedup=SpeedupRecord.of(against.speedup) if against.speedup else None,
        speedup_reason=against.speedup_reason,
        file_ratio=against.file_ratio,
        layers=tuple(
            LayerRecord(layer=row.layer, first_ms=row.before_ms, ms=row.after_ms, verdict=row.verdict)
            for row in layers.rows
        ),
        layers_reason=layers.reason,
    )
