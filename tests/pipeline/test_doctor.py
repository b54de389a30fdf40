"""Facts about what `potstill doctor` says."""

from pathlib import Path
from typing import Literal

import pytest

from potstill.export.machine import machine_facts
from potstill.export.measurement import GpuFacts
from potstill.export.onnx_sessions.session import wheel
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline import doctor
from potstill.pipeline.errors import MissingDependency

GPU = GpuFacts(
    name="NVIDIA L4",
    compute_capability="8.9",
    memory_bytes=24 * 2**30,
    multiprocessors=58,
    driver="550.54.15",
    driver_cuda="12.4",
    cuda="12.4",
)


class Broken(OnnxRuntimeTarget):
    """Raises what no runtime means to raise."""

    device: Literal["cpu", "cuda"] = "cpu"

    def check(self) -> None:
        """Break on the CPU, and be missing on the GPU."""
        if self.device == "cpu":
            raise OSError("libbroken.so: undefined\nsymbol")
        raise MissingDependency("it is not installed: pip install it")


class TestRuntimes:
    def test_each_device_has_its_line_and_what_is_missing_says_what_to_install(self) -> None:
        able: dict[tuple[str, str], bool] = {}
        lines = [*doctor.runtime_lines({"onnxruntime": Broken}, able)]
        assert len(lines) == 2
        assert "onnxruntime cpu: no (onnxruntime" in lines[0]
        assert lines[0].endswith("it breaks when it is asked: OSError: libbroken.so: undefined symbol")
        assert lines[1].endswith("it is not installed: pip install it")
        assert able == {("onnxruntime", "cpu"): False, ("onnxruntime", "cuda"): False}

    def test_a_runtime_that_works_tells_its_version(self) -> None:
        able: dict[tuple[str, str], bool] = {}
        lines = [*doctor.runtime_lines({"onnxruntime": OnnxRuntimeTarget}, able)]
        version = machine_facts().libraries.get("onnxruntime") or machine_facts().libraries["onnxruntime-gpu"]
        assert lines[0].startswith("runtime    onnxruntime cpu: can build and run here")
        assert version in lines[0]
        assert able["onnxruntime", "cpu"]

    def test_of_two_packages_for_one_folder_the_one_that_runs_is_named_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name, number = wheel()
        other = "onnxruntime-gpu" if name == "onnxruntime" else "onnxruntime"
        facts = tmp_path / f"{other.replace('-', '_')}-0.1.dist-info" / "METADATA"
        facts.parent.mkdir()
        facts.write_text(f"Metadata-Version: 2.1\nName: {other}\nVersion: 0.1\n")
        monkeypatch.syspath_prepend(tmp_path)
        line = next(doctor.runtime_lines({"onnxruntime": OnnxRuntimeTarget}, {}))
        words = f"({name} {number} is what runs; {other} 0.1 is installed into the same folder, too: pip uninstall"
        assert line.startswith(f"runtime    onnxruntime cpu: can build and run here {words}")


class TestProcessor:
    def test_instruction_sets_are_told_in_words(self) -> None:
        new = "\n".join(doctor.processor_lines(frozenset({"avx512_vnni", "amx_int8", "amx_bf16"})))
        assert "(amx_int8, avx512_vnni): 8-bit weights run at full rate" in new
        assert "bf16       multiplied by the processor (amx_bf16)" in new
        assert "fp16       not multiplied" in new
        old = "\n".join(doctor.processor_lines(frozenset({"avx2"})))
        assert "7-bit weights are safe" in old
        assert "stay in fp32" in old


class TestGpu:
    @pytest.mark.parametrize(
        ("cuda", "words"),
        [
            ("12.4", "they fit"),
            ("11.8", "they fit"),
            ("12.8", "they fit, but kernels that are compiled at run time may not load"),
            ("13.0", "too old, install a newer driver or a torch for CUDA 12"),
            (None, "not known"),
        ],
    )
    def test_a_driver_runs_what_is_not_newer_than_itself(self, cuda: str | None, words: str) -> None:
        first, second = doctor.gpu_lines([GPU.model_copy(update={"cuda": cuda})])
        assert first == "gpu        NVIDIA L4, compute capability 8.9, 24.0 GiB, 58 multiprocessors"
        assert second.startswith("driver     550.54.15; ")
        assert words in second

    def test_a_driver_that_is_not_known_is_said_not_to_be(self) -> None:
        assert "unknown" in [*doctor.gpu_lines([GPU.model_copy(update={"driver": None})])][1]


class TestCompiler:
    def test_the_one_that_is_asked_for_is_looked_for(self) -> None:
        there = {"mycc": "/opt/mycc", "g++": "/usr/bin/g++"}
        assert [*doctor.compiler_lines({"CXX": "mycc"}, there.get)] == ["compiler   /opt/mycc"]
        assert [*doctor.compiler_lines({}, there.get)] == ["compiler   /usr/bin/g++"]
        assert "no C++ compiler (nowhere)" in next(iter(doctor.compiler_lines({"CXX": "nowhere"}, there.get)))


class TestAdvice:
    @pytest.mark.parametrize(
        ("able", "target"),
        [
            ({("tensorrt", "cuda"): True, ("onnxruntime", "cuda"): True}, "runtime: tensorrt, device: cuda"),
            ({("tensorrt", "cuda"): False, ("onnxruntime", "cuda"): True}, "runtime: onnxruntime, device: cuda"),
            ({("inductor", "cuda"): True, ("onnxruntime", "cpu"): True}, "runtime: inductor, device: cuda"),
            ({("onnxruntime", "cpu"): True}, "runtime: onnxruntime, device: cpu, precision: [int8]"),
            ({}, "pip install onnxruntime"),
        ],
    )
    def test_it_names_the_fastest_target_that_there_is(self, able: dict[tuple[str, str], bool], target: str) -> None:
        assert target in doctor.advice(able, has_int8_dot_product=True)

    def test_processors_that_saturate_get_7_bit_weights(self) -> None:
        assert "7-bit" in doctor.advice({("onnxruntime", "cpu"): True}, has_int8_dot_product=False)


def test_one_broken_thing_costs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "RAPL_FOLDER", None)
    lines = [*doctor.findings()]
    (broken,) = [line for line in lines if "could not be found out" in line]
    assert broken.startswith("rapl       could not be found out: AttributeError")
    assert any(line.startswith("runtime    onnxruntime cpu: can build") for line in lines)
    assert lines[-1].startswith("advice     `runtime: ")
