"""Joules of running an engine, by counters that the hardware keeps: NVIDIA's of a GPU, Intel's RAPL of a processor.

The counter is read before and after a long row of single queries. What the device took idle just before, for as long as
the row, is subtracted: what is left is what the queries cost.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from ..pipeline.errors import MissingDependency
from .gpu_state import nvml, nvml_handle
from .measurement import Energy, NotMeasured

IDLE_SECONDS = 2.0
BUSY_SECONDS = 3.0
SETTLE_SECONDS = 0.5
"""Left out between what was timed before and the idle window: clocks and power fall slowly."""

RAPL_FOLDER = Path("/sys/class/powercap")

Source = Literal["NVML", "RAPL"]
T = TypeVar("T")


class Counter(Protocol):
    """A counter of energy that only goes up."""

    @property
    def source(self) -> Source:
        """Whose it is."""
        ...

    def joules(self) -> float:
        """Since some moment in the past."""
        ...


@dataclass(frozen=True)
class Window:
    """What a counter went up by, and in how long."""

    joules: float
    seconds: float

    @property
    def watts(self) -> float:
        """On average."""
        return self.joules / self.seconds


class GpuCounter:
    """NVML's counter of the whole GPU, in millijoules since the driver was loaded."""

    source: Source = "NVML"

    def __init__(self) -> None:
        self._library, self._handle = nvml(), nvml_handle()

    def joules(self) -> float:
        """Since the driver was loaded."""
        return self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3


class RaplCounter:
    """RAPL's counters of all the processor's packages, in microjoules; they begin anew at their range's end."""

    source: Source = "RAPL"

    def __init__(self, packages: Sequence[Path]) -> None:
        self._ranges = {package: int((package / "max_energy_range_uj").read_text()) for package in packages}
        self._last = {package: self._read(package) for package in packages}
        self._microjoules = 0

    @staticmethod
    def _read(package: Path) -> int:
        return int((package / "energy_uj").read_text())

    def joules(self) -> float:
        """Since it was opened; right as long as no counter goes all the way round between two calls."""
        for package, full in self._ranges.items():
            now = self._read(package)
            self._microjoules += (now - self._last[package]) % (full + 1)
            self._last[package] = now
        return self._microjoules / 1e6


def counter_of(device: str) -> Counter | NotMeasured:
    """The counter for what runs on ``cpu`` or ``cuda``, or why there is none."""
    return _gpu_counter() if device == "cuda" else rapl_counter(RAPL_FOLDER)


def _gpu_counter() -> Counter | NotMeasured:
    try:
        counter = GpuCounter()
    except MissingDependency as error:
        return NotMeasured(reason=str(error))
    try:
        counter.joules()
    except nvml().NVMLError as error:
        return NotMeasured(reason=f"this GPU has no counter of its energy that NVML can read: {error}")
    return counter


def rapl_counter(folder: Path) -> Counter | NotMeasured:
    """The counter of the packages in the kernel's folder of power caps."""
    # Beside them lie their parts, such as the memory, and on laptops the whole platform, which holds them all.
    names = sorted(folder.glob("intel-rapl:*/name"))
    packages = [name.parent for name in names if name.read_text().startswith("package")]
    if not packages:
        return NotMeasured(reason="the system shows no RAPL counters of this processor, as in most virtual machines")
    try:
        return RaplCounter(packages)
    except PermissionError as error:
        return NotMeasured(
            reason=f"only root may read {error.filename}, the processor's counter of energy: "
            f"sudo chmod a+r {folder}/intel-rapl:*/energy_uj allows it until the next start"
        )
    except (OSError, ValueError) as error:
        return NotMeasured(reason=f"the processor's counter of energy cannot be read: {error}")


def energy_of(
    counter: Counter | NotMeasured,
    run_for: Callable[[float], int],
    batch: int,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy | NotMeasured:
    """What a sample of a query costs; `run_for` runs queries of `batch` samples for some seconds and counts them.

    Takes five and a half seconds, or none where there is no counter.
    """
    if isinstance(counter, NotMeasured):
        return counter
    return energy_above(idle_window(counter, sleep), counter, run_for, batch)


def idle_window(counter: Counter, sleep: Callable[[float], None] = time.sleep) -> Window:
    """What the device takes while nothing runs; two and a half seconds."""
    sleep(SETTLE_SECONDS)
    return _window(counter, lambda: sleep(IDLE_SECONDS))[0]


def energy_above(idle: Window, counter: Counter, run_for: Callable[[float], int], batch: int) -> Energy | NotMeasured:
    """As `energy_of`, beside an idle window that was taken before; three seconds."""
    busy, queries = _window(counter, lambda: run_for(BUSY_SECONDS))
    return per_sample(counter.source, idle, busy, queries * batch)


def _window(counter: Counter, act: Callable[[], T]) -> tuple[Window, T]:
    joules, begun = counter.joules(), time.perf_counter()
    result = act()
    return Window(counter.joules() - joules, time.perf_counter() - begun), result


def per_sample(source: Source, idle: Window, busy: Window, samples: int) -> Energy | NotMeasured:
    """The difference of both windows' power over the busy one, for each sample."""
    if busy.joules <= 0:
        return NotMeasured(reason=f"the {source} counter did not move while the engine ran for {busy.seconds:.1f} s")
    extra = busy.joules - idle.watts * busy.seconds
    if extra <= 0:
        return NotMeasured(
            reason=f"the device took no more while the engine ran ({busy.watts:.1f} W) than idle before "
            f"({idle.watts:.1f} W): something else used it"
        )
    return Energy(
        source=source,
        millijoules=extra / samples * 1e3,
        idle_w=idle.watts,
        busy_w=busy.watts,
        seconds=busy.seconds,
        samples=samples,
    )
