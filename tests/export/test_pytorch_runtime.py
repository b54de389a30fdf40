"""Facts about engines that eager PyTorch runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from potstill.export.deliver import BuiltEngine, OnnxMetadata, build_engine
from potstill.export.engine_process import EngineProcess
from potstill.export.parity import numpy_inputs, parity_of
from potstill.export.runtimes.pytorch_runtime import PyTorchTarget
from potstill.export.target import Source, targets
from potstill.export.torch_engine import TorchEngine, exact_float32
from potstill.export.torch_program import InPrecision, Program, Signature, operators_called
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError
from potstill.pipeline.processor import has_bf16
from tests.support.families import FAMILIES

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module")
def source(float_artifact: Artifact, data: Dataset, metadata: OnnxMetadata) -> Source:
    """The float network."""
    return Source(artifact=float_artifact, data=data, metadata=metadata)


@pytest.fixture(scope="module")
def engine(
    float_artifact: Artifact, data: Dataset, metadata: OnnxMetadata, tmp_path_factory: pytest.TempPathFactory
) -> BuiltEngine:
    """The float network's engine, accepted."""
    folder = tmp_path_factory.mktemp("eager")
    return build_engine(float_artifact, PyTorchTarget(), "fp32", folder, data, metadata=metadata)


class TestBuilding:
    def test_the_engine_is_the_artifact_and_computes_exactly_what_the_model_does(self, engine: BuiltEngine) -> None:
        assert engine.parity.max_absolute == 0.0
        assert engine.file == "model.safetensors"
        assert set(engine.beside) == {"blueprint.json"}
        assert Artifact.load(engine.folder).lineage == ()

    @pytest.mark.parametrize(
        ("precision", "dtype", "limit"),
        [
            ("fp16", torch.float16, 5e-3),
            # Eight bits of mantissa; measured were 0.006 to 0.013 of the largest output in networks like this one.
            pytest.param(
                *("bf16", torch.bfloat16, 0.04), marks=pytest.mark.skipif(not has_bf16(), reason="no bfloat16 here")
            ),
        ],
    )
    def test_sixteen_bits_halve_the_weights_and_give_float32(
        self, precision: str, dtype: torch.dtype, limit: float, source: Source, engine: BuiltEngine, tmp_path: Path
    ) -> None:
        from safetensors.torch import load_file

        target = PyTorchTarget.model_validate({"precision": [precision]})
        made = target.make(source, precision, tmp_path)
        assert {each.dtype for each in load_file(made.file).values() if each.is_floating_point()} == {dtype}
        assert made.file.stat().st_size < 0.6 * engine.path.stat().st_size
        with target.open(made.file) as opened:
            outputs = opened.run(numpy_inputs(source.data.example(4)))["logits"]
            parity = parity_of(opened, source.artifact, source.data, precision)
        assert outputs.dtype == np.float32
        assert 0 < parity.max_relative < limit

    def test_a_quantized_model_gives_an_engine_of_its_float_weights(
        self, int8_artifact: Artifact, source: Source, tmp_path: Path
    ) -> None:
        made = PyTorchTarget().make(replace(source, artifact=int8_artifact), "fp32", tmp_path)
        inputs = source.data.example(3)
        with PyTorchTarget().open(made.file) as opened, torch.no_grad():
            expected = int8_artifact.model(*inputs.values()).numpy()
            np.testing.assert_array_equal(opened.run(numpy_inputs(inputs))["logits"], expected)

    def test_int8_is_refused_with_the_reason(self, source: Source, tmp_path: Path) -> None:
        with pytest.raises(ValidationError, match="rounds in between"):
            PyTorchTarget.model_validate({"precision": ["int8"]})
        with pytest.raises(ExportError, match="under fake quantizers in float32"):
            PyTorchTarget().make(source, "int8", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_integers_are_not_cast(self) -> None:
        family = FAMILIES["text_one_operator"]
        model, inputs = family.network(), family.example(3)
        with torch.no_grad():
            exact, half = model(*inputs.values()), InPrecision(model, "fp16")(*inputs.values())
        assert half.dtype == torch.float32
        assert 0 < (half - exact).abs().max() < 5e-3 * exact.abs().max()

    def test_channels_last_changes_the_order_of_the_weights_and_nothing_else(
        self, engine: BuiltEngine, data: Dataset, float_artifact: Artifact
    ) -> None:
        model = InPrecision(float_artifact.model, "fp32", channels_last=True).model
        assert model.get_submodule("layer1.0.conv1").weight.is_contiguous(memory_format=torch.channels_last)
        with PyTorchTarget(channels_last=True).open(engine.path) as opened:
            assert parity_of(opened, float_artifact, data, "fp32").passed


class TestTarget:
    def test_it_survives_its_json(self) -> None:
        target = PyTorchTarget(device="cuda", precision=("fp16", "bf16"), cuda_graph=True, threads=3)
        assert targets()["pytorch"].model_validate_json(target.model_dump_json()) == target

    def test_a_cuda_graph_is_of_a_gpu(self) -> None:
        with pytest.raises(ValidationError, match="only `device: cuda` knows cuda_graph"):
            PyTorchTarget(cuda_graph=True)

    def test_settings_that_change_numbers_tell_targets_apart(self) -> None:
        assert PyTorchTarget(channels_last=True).label == "pytorch cpu nhwc"
        assert PyTorchTarget(device="cuda", cuda_graph=True, threads=2).slug == "pytorch-cuda-2-threads-graphed"

    @without_cuda
    def test_a_gpu_that_is_not_there_is_not_replaced(self, engine: BuiltEngine, source: Source, tmp_path: Path) -> None:
        target = PyTorchTarget(device="cuda")
        with pytest.raises(ExportError, match="needs an NVIDIA GPU"):
            target.check()
        with pytest.raises(ExportError, match="needs an NVIDIA GPU"):
            target.make(source, "fp32", tmp_path)
        with pytest.raises(ExportError, match="needs an NVIDIA GPU"), target.open(engine.path):
            pass

    @pytest.mark.skipif(has_bf16(), reason="this processor has bfloat16")
    def test_bf16_is_refused_where_it_would_be_emulated(self) -> None:
        with pytest.raises(ExportError, match="no bfloat16 instructions"):
            PyTorchTarget(precision=("bf16",)).check()


class TestEngine:
    def test_it_tells_what_it_takes_and_calls(self, engine: BuiltEngine) -> None:
        with PyTorchTarget().open(engine.path) as opened:
            description = opened.describe()
        assert description.provider == f"torch {torch.__version__} cpu"
        assert description.inputs == {"image": (None, 1, 16, 16)}
        assert description.input_types == {"image": "float32"}
        assert description.outputs == {"logits": (None, 4)}
        # Nothing is fused: that is what makes it the reference.
        assert description.operators["conv2d"] == description.operators["batch_norm"] == 9

    def test_each_timed_run_has_its_duration(self, engine: BuiltEngine, data: Dataset) -> None:
        with PyTorchTarget().open(engine.path) as opened:
            opened.bind(numpy_inputs(data.example(3)))
            seconds = opened.timed(5)
            assert opened.device_timed(5) is None
            assert opened.device_memory_bytes() is None
        assert seconds.shape == (5,)
        assert (seconds > 0).all()

    def test_the_process_has_its_threads_back_afterwards(self, engine: BuiltEngine) -> None:
        before = torch.get_num_threads()
        with PyTorchTarget(threads=before + 1).open(engine.path):
            assert torch.get_num_threads() == before + 1
        assert torch.get_num_threads() == before

    def test_operators_are_timed_by_module(self, engine: BuiltEngine, data: Dataset) -> None:
        times = PyTorchTarget().operator_times(engine.path, numpy_inputs(data.example(2)))
        calls = [(each.layer, each.operator) for each in times]
        assert calls.index(("conv1", "conv2d")) < calls.index(("bn1", "batch_norm"))
        assert ("layer1.0", "add") in calls
        assert len([operator for _, operator in calls if operator == "conv2d"]) == 9
        assert all(each.ms > 0 for each in times if each.operator == "conv2d")

    def test_a_process_of_its_own_runs_it(self, engine: BuiltEngine, data: Dataset) -> None:
        with EngineProcess(PyTorchTarget(), engine.path) as process:
            process.bind(numpy_inputs(data.example(1)))
            assert process.timed(3).shape == (3,)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"picture": np.zeros((1, 1, 16, 16), np.float32)}, "takes the inputs image; given were picture"),
            (
                {"image": np.zeros((1, 3, 16, 16), np.float32)},
                r"takes float32 \(any, 1, 16, 16\); given was .*1, 3, 16",
            ),
            ({"image": np.zeros((1, 1, 16, 16), np.float64)}, r"takes float32 \(any, 1, 16, 16\); given was float64"),
            (
                {"image": np.zeros((0, 1, 16, 16), np.float32)},
                r"takes float32 \(any, 1, 16, 16\); given was .*0, 1, 16",
            ),
        ],
    )
    def test_inputs_that_do_not_fit_are_refused(
        self, engine: BuiltEngine, inputs: dict[str, np.ndarray], message: str
    ) -> None:
        with PyTorchTarget().open(engine.path) as opened:
            with pytest.raises(ExportError, match=message):
                opened.run(inputs)
            with pytest.raises(ExportError, match=message):
                opened.bind(inputs)

    def test_code_that_cannot_be_cast_is_told_how_it_could(self) -> None:
        family = FAMILIES["text_encoder"]  # makes a float32 mask, whatever it computes in
        model, inputs = InPrecision(family.network(), "fp16"), family.example()
        signature = Signature.of(family.network(), inputs, "fp16", "logits")

        def call(tensors: Sequence[Tensor]) -> Tensor:
            return model(*tensors)

        def load() -> Program:
            return Program(signature, call, partial(operators_called, model))

        with (
            TorchEngine(Path("model"), load, device="cpu", threads=1) as engine,
            pytest.raises(ExportError, match=r"same dtype[\s\S]*such as by `\.float\(\)`"),
        ):
            engine.run(numpy_inputs(inputs))


SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (lambda file: file.unlink(), "there is no engine file"),
    (lambda file: file.write_bytes(b"no weights" * 99), r"model\.safetensors is damaged[\s\S]*Mend"),
    (lambda file: file.write_bytes(file.read_bytes()[:-1000]), r"model\.safetensors is damaged[\s\S]*Mend"),
    (lambda file: file.with_name("blueprint.json").unlink(), r"blueprint\.json is missing"),
    (lambda file: file.with_name("blueprint.json").write_text("{}"), r"cannot be opened: 'version'[\s\S]*Mend"),
]
"""What is done to a good file, and what is said of it then."""


class TestBadFiles:
    @pytest.fixture
    def copy(self, engine: BuiltEngine, tmp_path: Path) -> Path:
        """Of a good engine, to be spoilt."""
        for file in engine.folder.glob("[bm]*"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path / "model.safetensors"

    @pytest.mark.parametrize(("spoil", "message"), SPOILT)
    def test_they_are_refused(self, copy: Path, spoil: Callable[[Path], object], message: str) -> None:
        spoil(copy)
        with pytest.raises(ExportError, match=message), PyTorchTarget().open(copy):
            pass

    def test_weights_that_are_no_engine_are_refused(self, source: Source, tmp_path: Path) -> None:
        source.artifact.save(tmp_path, source.data.example())
        with (
            pytest.raises(ExportError, match="was not built for the target pytorch"),
            PyTorchTarget().open(tmp_path / "model.safetensors"),
        ):
            pass

    def test_a_file_of_another_name_is_refused(self, copy: Path) -> None:
        renamed = copy.rename(copy.with_name("mine.safetensors"))
        with pytest.raises(ExportError, match=r"name it model\.safetensors"), PyTorchTarget().open(renamed):
            pass


class TestExactFloat32:
    def test_it_turns_tf32_off_and_back(self) -> None:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        with exact_float32():
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
