"""Facts about what is read from a GPU's management library."""

import pytest
import torch

from potstill.export import gpu_state
from potstill.export.machine import machine_facts
from potstill.export.measurement import Machine
from potstill.pipeline.errors import MissingDependency


def nvml_problem() -> str:
    try:
        gpu_state.nvml()
    except MissingDependency as error:
        return str(error)
    return "" if torch.cuda.is_available() else "torch uses no GPU here"


PROBLEM = nvml_problem()


class TestReasons:
    @pytest.mark.parametrize(
        ("bits", "words"),
        [
            (0x0, ()),
            (0x1, ()),  # idle: not held back
            (0x4, ("power cap",)),
            (0x1 | 0x20 | 0x8, ("hardware slowdown", "thermal slowdown")),
            (0x4 | 0x1000, ("power cap", "reason 0x1000")),
        ],
    )
    def test_bits_are_told_in_words(self, bits: int, words: tuple[str, ...]) -> None:
        assert gpu_state.reasons_in_words(bits) == words

    def test_they_are_those_of_nvidias_own_module(self) -> None:
        pynvml = pytest.importorskip("pynvml")
        theirs = {bit for name, bit in vars(pynvml).items() if name.startswith("nvmlClocksEventReason")}
        ours = {*gpu_state.REASONS}
        assert theirs - {pynvml.nvmlClocksEventReasonAll, pynvml.nvmlClocksEventReasonNone} == ours | {0x1}
        assert pynvml.NVML_CLOCK_SM == gpu_state.SM_CLOCK
        assert pynvml.NVML_CLOCK_MEM == gpu_state.MEMORY_CLOCK
        assert pynvml.NVML_TEMPERATURE_GPU == gpu_state.CORE_TEMPERATURE


@pytest.mark.skipif(not PROBLEM, reason="NVML is here")
class TestWithoutNvml:
    def test_a_state_is_none_and_the_reason_says_what_is_missing(self) -> None:
        assert gpu_state.device_state() is None
        assert "pip install nvidia-ml-py" in PROBLEM or "driver" in PROBLEM or "no GPU" in PROBLEM


@pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)
class TestOnGpu:
    def test_it_tells_its_clocks_and_heat(self) -> None:
        state = gpu_state.device_state()
        assert state is not None
        assert state.sm_clock_mhz is not None
        assert state.max_sm_clock_mhz is not None
        assert 0 < state.sm_clock_mhz <= state.max_sm_clock_mhz
        assert state.temperature_c is None or 0 < state.temperature_c < 110

    def test_the_machine_tells_its_driver(self) -> None:
        (gpu, *_) = machine_facts().gpus
        assert gpu.name == torch.cuda.get_device_name()
        assert gpu.driver
        assert gpu.driver_cuda


def test_machines_of_older_reports_load() -> None:
    facts = machine_facts().model_dump(mode="json")
    del facts["gpus"]
    assert Machine.model_validate(facts).gpus == ()
