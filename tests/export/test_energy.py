"""Facts about the energy of engines, worked out from what counters say."""

import os
from pathlib import Path

import pytest

from potstill.export.energy import Counter, RaplCounter, Window, counter_of, energy_of, per_sample, rapl_counter
from potstill.export.measurement import Energy, NotMeasured

RANGE = 262_143_328_850


def package(folder: Path, number: int, microjoules: int, name: str = "") -> Path:
    made = folder / f"intel-rapl:{number}"
    made.mkdir()
    (made / "name").write_text((name or f"package-{number}") + "\n")
    (made / "energy_uj").write_text(f"{microjoules}\n")
    (made / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return made


class Scripted:
    """A counter that goes up by steps that are given."""

    source = "NVML"

    def __init__(self, *joules: float) -> None:
        self._joules = list(joules)

    def joules(self) -> float:
        return self._joules.pop(0)


class TestPerSample:
    def test_what_the_idle_device_takes_is_subtracted(self) -> None:
        energy = per_sample("NVML", Window(140, 2), Window(900, 3), samples=1000)
        assert isinstance(energy, Energy)
        assert (energy.idle_w, energy.busy_w) == (70, 300)
        assert energy.millijoules == pytest.approx((900 - 70 * 3) / 1000 * 1e3)

    def test_a_counter_that_does_not_move_measures_nothing(self) -> None:
        energy = per_sample("NVML", Window(0, 2), Window(0, 3), samples=10)
        assert energy == NotMeasured(reason="the NVML counter did not move while the engine ran for 3.0 s")

    def test_no_sample_costs_less_than_nothing(self) -> None:
        energy = per_sample("RAPL", Window(200, 2), Window(150, 3), samples=10)
        assert isinstance(energy, NotMeasured)
        assert "something else used it" in energy.reason


class TestEnergyOf:
    def test_samples_are_queries_times_their_batch(self) -> None:
        counter: Counter = Scripted(0, 1e-9, 1e-9, 500)
        waited: list[float] = []

        def ten_a_second(seconds: float) -> int:
            return int(seconds * 10)

        energy = energy_of(counter, ten_a_second, batch=8, sleep=waited.append)
        assert isinstance(energy, Energy)
        assert energy.samples == 30 * 8
        assert energy.millijoules == pytest.approx(500 / 240 * 1e3, rel=1e-3)
        assert sum(waited) == pytest.approx(2.5)

    def test_without_a_counter_nothing_runs_and_the_reason_stays(self) -> None:
        def never(seconds: float) -> int:
            raise AssertionError(f"ran for {seconds} s")

        reason = NotMeasured(reason="no counter here")
        assert energy_of(reason, never, batch=1, sleep=never) == reason


class TestRapl:
    def test_packages_are_summed_and_their_parts_are_not(self, tmp_path: Path) -> None:
        packages = [package(tmp_path, number, 1_000_000) for number in (0, 1)]
        platform = package(tmp_path, 2, 1_000_000, "psys")
        core = packages[0] / "intel-rapl:0:0"
        core.mkdir()
        (core / "name").write_text("core\n")
        counter = rapl_counter(tmp_path)
        assert isinstance(counter, RaplCounter)
        assert counter.joules() == 0
        for each in (*packages, platform):
            (each / "energy_uj").write_text("3500000\n")
        assert counter.joules() == pytest.approx(5.0)

    def test_a_counter_that_begins_anew_goes_on(self, tmp_path: Path) -> None:
        zone = package(tmp_path, 0, RANGE - 400_000)
        counter = rapl_counter(tmp_path)
        assert isinstance(counter, RaplCounter)
        (zone / "energy_uj").write_text("599999\n")
        assert counter.joules() == pytest.approx(1.0, abs=1e-5)
        (zone / "energy_uj").write_text("1599999\n")
        assert counter.joules() == pytest.approx(2.0, abs=1e-5)

    def test_none_there_is_said_to_be_none(self, tmp_path: Path) -> None:
        counter = rapl_counter(tmp_path)
        assert isinstance(counter, NotMeasured)
        assert "no RAPL counters" in counter.reason

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_one_that_may_not_be_read_says_how_to_allow_it(self, tmp_path: Path) -> None:
        (package(tmp_path, 0, 5) / "energy_uj").chmod(0)
        counter = rapl_counter(tmp_path)
        assert isinstance(counter, NotMeasured)
        assert "sudo chmod a+r" in counter.reason

    def test_one_that_holds_no_number_is_told(self, tmp_path: Path) -> None:
        (package(tmp_path, 0, 5) / "energy_uj").write_text("<not counted>\n")
        counter = rapl_counter(tmp_path)
        assert isinstance(counter, NotMeasured)
        assert "cannot be read" in counter.reason


def test_a_device_without_a_counter_says_why() -> None:
    found = counter_of("cpu")
    assert isinstance(found, RaplCounter) or found.reason
