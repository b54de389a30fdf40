"""The engines that are compared, whether a run or a profile measured them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

from ...export.measurement import (
    Comparison,
    EngineMeasurement,
    Latency,
    Machine,
    NotMeasured,
    OperatorTime,
    Score,
)
from ..metric import Metric
from ..report import Report, StepReport
from .profile_file import ProfileEntry, ProfileFile

NO_SCORE = "a profile runs no test samples"


@dataclass(frozen=True)
class Ground:
    """Over what a score was taken: scores over equal grounds may be set beside each other."""

    metric: Metric
    data: str
    classes: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Contender:
    """One engine. What was not measured of it is None."""

    mark: str
    """Unlike any other's in the comparison, such as ``A6``; begins with the letter of where it comes from."""
    label: str
    """Where it comes from, in words, such as ``A digits``."""
    name: str
    """What it is there: the step that made it, or what the profile calls the file."""
    target: str
    """Such as ``onnxruntime cpu int8``."""
    machine: Machine
    threads: int
    latency: tuple[Latency, ...]
    file: str
    file_bytes: int | None
    peak_memory_bytes: int | None
    operators: tuple[OperatorTime, ...] | NotMeasured
    is_final: bool = True
    """Whether it is what its run ends with, or was profiled; other engines are those of earlier steps."""
    score: Score | None = None
    ground: Ground | None = None
    """None where there is no score."""
    speedup: Comparison | None = None
    """To the fp32 engine of its run's own teacher, at the first batch size."""
    parameters: int | None = None
    macs: int | None = None
    beside: tuple[Comparison, ...] = ()
    """In turns with the engine of `beside_mark`: surer than what two sessions tell."""
    beside_mark: str = ""
    measurement: EngineMeasurement | None = None
    """Everything else that a run measured."""

    @property
    def letter(self) -> str:
        """Of the run or profile."""
        return self.mark[0]

    def at(self, batch: int) -> Latency | None:
        """Its latency at a batch size."""
        return next((each for each in self.latency if each.batch == batch), None)


def hardware(machine: Machine) -> tuple[object, ...]:
    """What must be equal for latencies to be set against each other."""
    return (machine.cpu_model, machine.cpu_flags, machine.cores, machine.threads, machine.gpu)


@dataclass(frozen=True)
class Run:
    """A finished run among what is compared."""

    letter: str
    path: Path
    report: Report

    @property
    def label(self) -> str:
        """Such as ``B digits-wide``."""
        return f"{self.letter} {self.report.name}"

    @property
    def machine(self) -> Machine:
        """Where it was measured."""
        return self.report.machine

    @property
    def steps(self) -> tuple[Contender, ...]:
        """The engine of each step for the first target; the last one is the run's main engine."""
        last = self.report.steps[-1]
        return tuple(
            self._contender(f"{self.letter}{_number(step, index)}", step, step.engine, is_final=step is last)
            for index, step in enumerate(self.report.steps)
        )

    @property
    def engines(self) -> tuple[Contender, ...]:
        """Those of the steps, then the final ones for other targets and precisions."""
        steps, last = self.steps, self.report.steps[-1]
        others = [engine for engine in self.report.engines if engine.target != last.engine.target]
        return (
            *steps,
            *(
                self._contender(f"{steps[-1].mark}{_suffix(index)}", last, engine, is_final=True)
                for index, engine in enumerate(others)
            ),
        )

    @property
    def main(self) -> tuple[Contender, ...]:
        """What the run stands for: the final engine for the first target."""
        return self.steps[-1:]

    def _contender(self, mark: str, step: StepReport, engine: EngineMeasurement, *, is_final: bool) -> Contender:
        report = self.report
        return Contender(
            mark=mark,
            label=self.label,
            name=step.name,
            target=engine.target,
            machine=report.machine,
            threads=engine.threads,
            latency=tuple(timing.candidate for timing in engine.latency),
            file=engine.file,
            file_bytes=engine.file_bytes,
            peak_memory_bytes=engine.peak_memory_bytes,
            operators=engine.operators or NotMeasured(reason="an older potstill measured it"),
            is_final=is_final,
            score=engine.score,
            ground=Ground(engine.score.metric, report.data, report.classes, engine.score.count),
            speedup=engine.latency[0] if engine.latency else None,
            parameters=step.parameters,
            macs=step.macs,
            measurement=engine,
        )


@dataclass(frozen=True)
class Profiled:
    """A file of profiles among what is compared."""

    letter: str
    path: Path
    profile: ProfileFile

    @property
    def label(self) -> str:
        """Such as ``C profile.json``."""
        return f"{self.letter} {self.path.name}"

    @property
    def machine(self) -> Machine:
        """Where they were taken."""
        return self.profile.machine

    @property
    def engines(self) -> tuple[Contender, ...]:
        """One for each profiled file."""
        return tuple(self._contenders())

    @property
    def main(self) -> tuple[Contender, ...]:
        """All of them."""
        return self.engines

    def _contenders(self) -> Iterator[Contender]:
        for number, entry in enumerate(self.profile.entries, 1):
            mark = f"{self.letter}{number}"
            yield Contender(
                mark=mark,
                label=f"{mark} {Path(entry.file).name}",
                name=entry.name,
                target=entry.target,
                machine=self.machine,
                threads=entry.threads,
                latency=entry.latency,
                file=entry.file,
                file_bytes=entry.file_bytes,
                peak_memory_bytes=entry.peak_memory_bytes,
                operators=_layers(entry),
                beside=entry.beside_first,
                beside_mark=f"{self.letter}1",
            )


Source = Run | Profiled


def _layers(entry: ProfileEntry) -> tuple[OperatorTime, ...] | NotMeasured:
    return entry.layers or NotMeasured(reason="profiled without --layers")


def _number(step: StepReport, index: int) -> str:
    return step.name.partition("-")[0].lstrip("0") or str(index + 1)


def _suffix(index: int) -> str:
    """``b`` for the first engine beside the main one; the 26th and later ones are counted."""
    return ascii_lowercase[index + 1] if index + 1 < len(ascii_lowercase) else f"-{index + 2}"
