"""Facts about packages that PyTorch Inductor compiles ahead of time; one is compiled for all tests."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from potstill.export.deliver import OnnxMetadata
from potstill.export.inductor_package import Manifest, read_manifest
from potstill.export.measurement import NotMeasured
from potstill.export.parity import numpy_inputs, parity_of
from potstill.export.runtimes.inductor_runtime import InductorTarget
from potstill.export.target import Source, targets
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError, MissingDependency
from potstill.pipeline.profile_files import Request
from potstill.pipeline.profiling import profile
from potstill.pipeline.quiet import quiet

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


@dataclass(frozen=True)
class Package:
    """A compiled network, and what the build left behind."""

    file: Path
    scratch: tuple[str, ...]
    """In the folder for temporary files."""


@pytest.fixture(scope="module")
def package(
    float_artifact: Artifact, data: Dataset, metadata: OnnxMetadata, tmp_path_factory: pytest.TempPathFactory
) -> Package:
    """The float network's package."""
    from torch._inductor import config

    source = Source(artifact=float_artifact, data=data, metadata=metadata)
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        # Trying the compiler on every instruction set takes as long as compiling the network.
        patch.setattr(config.cpp, "vec_isa_ok", True)
        made = InductorTarget().make(source, "fp32", tmp_path_factory.mktemp("package"))
    return Package(made.file, tuple(each.name for each in scratch.iterdir()))


class TestBuilding:
    def test_the_package_computes_what_the_model_does_at_any_batch(
        self, package: Package, float_artifact: Artifact, data: Dataset
    ) -> None:
        with InductorTarget().open(package.file) as engine, torch.no_grad():
            assert parity_of(engine, float_artifact, data, "fp32").passed
            for batch in (1, 2, 33):
                inputs = data.example(batch)
                expected = float_artifact.model(*inputs.values()).numpy()
                np.testing.assert_allclose(engine.run(numpy_inputs(inputs))["logits"], expected, atol=1e-4)

    def test_nothing_but_the_package_stays(self, package: Package) -> None:
        from torch._inductor import config

        assert [each.name for each in package.file.parent.iterdir()] == ["model.pt2"]
        assert not [name for name in package.scratch if name.startswith("potstill")]
        assert config.freezing is False
        assert config.cpp.dynamic_threads is False
        assert config.aot_inductor.metadata == {}

    def test_it_loads_where_there_is_nothing_but_torch(self, package: Package, data: Dataset, tmp_path: Path) -> None:
        inputs = data.example(3)
        given, found = tmp_path / "inputs.npy", tmp_path / "outputs.npy"
        np.save(given, inputs["image"].numpy())
        script = (
            "import sys, numpy, torch\n"
            "package, given, found = sys.argv[1:]\n"
            "model = torch._inductor.aoti_load_package(package)\n"
            "outputs = model(torch.from_numpy(numpy.load(given)))\n"
            "numpy.save(found, outputs.numpy())\n"
            "assert not [name for name in sys.modules if name.split('.')[0] == 'potstill']\n"
        )
        command = [sys.executable, "-I", "-c", script, str(package.file), str(given), str(found)]
        subprocess.run(command, check=True, cwd=tmp_path)
        with InductorTarget().open(package.file) as engine:
            np.testing.assert_array_equal(np.load(found), engine.run(numpy_inputs(inputs))["logits"])

    def test_a_model_that_cannot_be_captured_is_refused(
        self, float_artifact: Artifact, data: Dataset, metadata: OnnxMetadata, tmp_path: Path
    ) -> None:
        source = Source(artifact=replace(float_artifact, model=Branching()), data=data, metadata=metadata)
        with pytest.raises(ExportError, match=r"torch\.export cannot capture this model[\s\S]*Mend"):
            InductorTarget().make(source, "fp32", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_int8_is_refused_with_the_reason(
        self, int8_artifact: Artifact, data: Dataset, metadata: OnnxMetadata, tmp_path: Path
    ) -> None:
        with pytest.raises(ValidationError, match="do not compute what"):
            InductorTarget.model_validate({"precision": ["int8"]})
        source = Source(artifact=int8_artifact, data=data, metadata=metadata)
        with pytest.raises(ExportError, match="has no int8 engines"):
            InductorTarget().make(source, "int8", tmp_path)

    def test_a_missing_compiler_is_said_to_be_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(MissingDependency, match=r"there is no no-such-compiler: install g\+\+"):
            InductorTarget().check()


class Branching(nn.Module):
    """Looks at its values to decide what to do."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)[:, :4] if image.mean() > 0 else -image.flatten(1)[:, :4]


class TestEngine:
    def test_it_tells_what_it_takes_and_calls(self, package: Package) -> None:
        with InductorTarget().open(package.file) as engine:
            description = engine.describe()
        assert description.provider == f"torch {torch.__version__} cpu"
        assert description.inputs == {"image": (None, 1, 16, 16)}
        assert description.input_types == {"image": "float32"}
        assert description.outputs == {"logits": (None, 4)}
        assert sum(count for name, count in description.operators.items() if "convolution" in name) == 9
        assert any(name.startswith("cpp_fused") for name in description.operators)

    def test_it_computes_the_same_with_more_threads(self, package: Package, data: Dataset) -> None:
        inputs = numpy_inputs(data.example(64))
        with InductorTarget(threads=1).open(package.file) as alone:
            expected = alone.run(inputs)["logits"]
        with InductorTarget(threads=3).open(package.file) as engine:
            np.testing.assert_allclose(engine.run(inputs)["logits"], expected, atol=1e-5)

    def test_each_timed_run_has_its_duration(self, package: Package, data: Dataset) -> None:
        with InductorTarget().open(package.file) as engine:
            engine.bind(numpy_inputs(data.example(3)))
            seconds = engine.timed(5)
            assert engine.device_timed(5) is None
            assert engine.device_memory_bytes() is None
        assert seconds.shape == (5,)
        assert (seconds > 0).all()

    def test_inputs_that_do_not_fit_are_refused(self, package: Package) -> None:
        with (
            InductorTarget().open(package.file) as engine,
            pytest.raises(ExportError, match=r"takes float32 \(any, 1, 16, 16\); given was float32 \(2, 1, 8, 16\)"),
        ):
            engine.run({"image": np.zeros((2, 1, 8, 16), np.float32)})

    def test_its_profile_says_that_there_are_no_times_of_layers(self, package: Package) -> None:
        said: list[str] = []
        (entry,) = profile(Request(files=[package.file], layers=True), said.append).entries
        assert entry.runtime == "inductor"
        assert entry.latency[0].p50_ms > 0
        assert isinstance(entry.layers, NotMeasured)
        assert "times of layers are not available for inductor cpu" in entry.layers.reason


class TestTarget:
    def test_it_survives_its_json(self) -> None:
        target = InductorTarget(device="cuda", precision=("fp16", "bf16"), cuda_graph=False, threads=3)
        assert targets()["inductor"].model_validate_json(target.model_dump_json()) == target

    def test_a_cuda_graph_is_of_a_gpu(self) -> None:
        assert InductorTarget(device="cuda", cuda_graph=False).slug == "inductor-cuda-ungraphed"
        with pytest.raises(ValidationError, match="only `device: cuda` knows cuda_graph"):
            InductorTarget(cuda_graph=False)

    def test_a_package_is_built_anew_for_another_torch(self) -> None:
        assert InductorTarget().build_settings()["torch"] == torch.__version__


class TestManifest:
    def test_torch_shows_it_too(self, package: Package) -> None:
        with quiet("torch._inductor"):
            metadata = torch._inductor.aoti_load_package(str(package.file)).get_metadata()
        manifest = Manifest.model_validate_json(metadata["potstill.manifest"])
        assert manifest == read_manifest(package.file)
        assert manifest.device == "cpu"
        assert manifest.torch == torch.__version__

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"torch": "1.13.1"}, r"compiled by PyTorch 1\.13, and this is 2\.\d+"),
            ({"machine": "vax"}, "compiled on .* vax, and this is"),
            ({"device": "cuda", "capability": "9.0"}, r"for the device cuda, .*; .*compute capability 9\.0"),
            pytest.param(
                {"instructions": ("warp_drive",)},
                "its code may use warp_drive, which this processor has not",
                marks=pytest.mark.skipif(sys.platform != "linux", reason="nothing is known of the processor"),
            ),
        ],
    )
    def test_a_package_of_elsewhere_is_refused(self, package: Package, change: dict[str, object], message: str) -> None:
        manifest = read_manifest(package.file).model_copy(update=change)
        with pytest.raises(ExportError, match=rf"{message}[\s\S]*Mend: build it on this machine"):
            manifest.demand_here(package.file, "cpu")

    def test_the_manifest_is_asked_before_any_code_is_loaded(self, package: Package, tmp_path: Path) -> None:
        file = tmp_path / "model.pt2"
        with zipfile.ZipFile(package.file) as old, zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                # Code that would crash, under the manifest of another PyTorch.
                if name.endswith(".so"):
                    content = b"no code"
                new.writestr(name, content.replace(torch.__version__.encode(), b"1.13.1"))
        with pytest.raises(ExportError, match=r"compiled by PyTorch 1\.13"), InductorTarget().open(file):
            pass


def _with_a_wrong_byte(file: Path) -> bytes:
    """In the middle of the shared library, the largest thing in a package."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as package:
        largest = max(package.infolist(), key=lambda each: each.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 0xFF
    return bytes(content)


SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (lambda file: file.unlink(), "there is no engine file"),
    (lambda file: file.write_bytes(b"no package" * 99), r"model\.pt2 is damaged, or is no \.pt2 package"),
    (lambda file: file.write_bytes(file.read_bytes()[:-1000]), r"model\.pt2 is damaged"),
    (lambda file: file.write_bytes(_with_a_wrong_byte(file)), r"model\.pt2 is damaged: the bytes of .*\.so"),
    (lambda file: zipfile.ZipFile(file, "w").close(), "was not compiled by potstill"),
]
"""What is done to a good file, and what is said of it then."""


class TestBadFiles:
    @pytest.mark.parametrize(("spoil", "message"), SPOILT)
    def test_they_are_refused(
        self, package: Package, tmp_path: Path, spoil: Callable[[Path], object], message: str
    ) -> None:
        file = tmp_path / "model.pt2"
        file.write_bytes(package.file.read_bytes())
        spoil(file)
        with pytest.raises(ExportError, match=message), InductorTarget().open(file):
            pass
