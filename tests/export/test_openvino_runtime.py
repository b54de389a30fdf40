"""Facts about engines of OpenVINO: what they compute, in which precision, and what is said of bad files."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from potstill.export.deliver import BuiltEngine, build_engine
from potstill.export.engine_process import EngineProcess
from potstill.export.onnx_file import OUTPUT, OnnxMetadata, exported
from potstill.export.openvino.engine import Engine
from potstill.export.openvino.profile import each_call
from potstill.export.openvino.runtime_graph import RuntimeOperator
from potstill.export.parity import numpy_inputs
from potstill.export.runtimes.openvino_runtime import OpenVinoTarget
from potstill.export.target import EngineFile, Source
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.cost import macs_by_layer
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError
from potstill.pipeline.fingerprints import sha256_of
from potstill.pipeline.processor import has_bf16
from potstill.pipeline.quantization import Quantization, Scheme, capture
from potstill.stages.quantization.placement import placed
from tests.support.onnx_files import convolutions, one_operator, with_data_beside

pytest.importorskip("openvino", reason="OpenVINO is not installed")

TARGET = OpenVinoTarget()
Built = Callable[[Artifact, str], BuiltEngine]


@pytest.fixture(scope="module")
def build(data: Dataset, metadata: OnnxMetadata, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Builds and accepts an engine in a folder of its own."""

    def build(artifact: Artifact, precision: str) -> BuiltEngine:
        folder = tmp_path_factory.mktemp(precision)
        return build_engine(artifact, TARGET, precision, folder, data, metadata=metadata)

    return build


@pytest.fixture(scope="module")
def as_float(build: Built, float_artifact: Artifact) -> BuiltEngine:
    """The float network's engine."""
    return build(float_artifact, "fp32")


@pytest.fixture(scope="module")
def as_int8(build: Built, int8_artifact: Artifact) -> BuiltEngine:
    """The quantized network's engine."""
    return build(int8_artifact, "int8")


class TestFloat:
    def test_it_computes_in_float32_also_where_the_processor_has_shorter_floats(self, as_float: BuiltEngine) -> None:
        with TARGET.open(as_float.path) as engine:
            precisions = {each.precision for each in engine.graph().operators if each.multiplies}
        assert precisions == {"f32"}
        assert as_float.parity.max_relative < 1e-5

    def test_its_batch_is_free(self, as_float: BuiltEngine, data: Dataset) -> None:
        inputs = numpy_inputs(data.example(5))
        with TARGET.open(as_float.path) as engine:
            together = engine.run(inputs)[OUTPUT]
            alone = engine.run({name: values[3:4] for name, values in inputs.items()})[OUTPUT]
        assert alone == pytest.approx(together[3:4], rel=1e-4, abs=1e-5)

    def test_it_describes_itself(self, as_float: BuiltEngine) -> None:
        with TARGET.open(as_float.path) as engine:
            description = engine.describe()
        assert description.provider.startswith("CPU of OpenVINO 20")
        assert description.inputs == {"image": (None, 1, 16, 16)}
        assert description.input_types == {"image": "float32"}
        assert description.outputs == {"logits": (None, 4)}
        assert description.operators["Convolution"] == 9
        # Batch norms are folded, and ReLUs and additions fused.
        assert not {"Eltwise", "Const", "Input"} & set(description.operators)

    def test_each_timed_run_has_its_duration_and_none_on_a_device(self, as_float: BuiltEngine, data: Dataset) -> None:
        with TARGET.open(as_float.path) as engine:
            engine.bind(numpy_inputs(data.example(3)))
            seconds = engine.timed(5)
            assert (engine.device_timed(5), engine.device_memory_bytes()) == (None, None)
        assert seconds.shape == (5,)
        assert (seconds > 0).all()

    def test_its_process_holds_no_torch(self, as_float: BuiltEngine, data: Dataset) -> None:
        with EngineProcess(TARGET, as_float.path) as process:
            process.bind(numpy_inputs(data.example(1)))
            assert process.timed(3).shape == (3,)
            maps = Path(f"/proc/{process.process_id}/maps")
            assert not maps.exists() or "libtorch" not in maps.read_text()

    def test_every_layer_has_its_time(self, as_float: BuiltEngine, data: Dataset) -> None:
        times = TARGET.operator_times(as_float.path, numpy_inputs(data.example(8)))
        layers = {each.layer for each in times if each.operator in ("Convolution", "FullyConnected")}
        assert {"conv1", "layer1.0.conv1", "layer3.0.shortcut.0", "linear"} <= layers
        assert len(layers) == 10
        assert sum(each.ms for each in times) > 0


class TestFiles:
    def test_graph_and_weights_belong_to_the_engine_and_the_onnx_file_does_not(
        self, as_float: BuiltEngine, float_artifact: Artifact
    ) -> None:
        names = {file.name for file in TARGET.files_of(as_float.path)}
        assert names == {"model.xml", "model.bin"}
        assert set(as_float.beside) == {"model.bin"}
        assert as_float.file_bytes == EngineFile(TARGET, as_float.path).num_bytes
        assert (as_float.folder / "model.onnx").is_file()
        convolved = sum(
            module.weight.numel() for module in float_artifact.model.modules() if isinstance(module, nn.Conv2d)
        )
        assert (as_float.folder / "model.bin").stat().st_size > 4 * convolved

    def test_the_same_model_gives_the_same_bytes(
        self, as_int8: BuiltEngine, int8_artifact: Artifact, data: Dataset, metadata: OnnxMetadata, tmp_path: Path
    ) -> None:
        made = TARGET.make(Source(artifact=int8_artifact, data=data, metadata=metadata), "int8", tmp_path)
        names = sorted(file.name for file in tmp_path.iterdir())
        assert names == ["model.bin", "model.onnx", "model.xml"]
        assert (made.file.name, sha256_of(made.file)) == (as_int8.file, as_int8.sha256)
        assert sha256_of(tmp_path / "model.bin") == as_int8.beside["model.bin"]

    def test_the_onnx_file_beside_it_is_one_that_openvino_opens_too(self, as_float: BuiltEngine, data: Dataset) -> None:
        inputs = numpy_inputs(data.example(2))
        with TARGET.open(as_float.path) as ours, TARGET.open(as_float.path.with_suffix(".onnx")) as plain:
            assert np.array_equal(ours.run(inputs)[OUTPUT], plain.run(inputs)[OUTPUT])

    def test_layers_of_someone_elses_file_are_called_by_their_nodes_the_last_one_by_its_output(
        self, tmp_path: Path
    ) -> None:
        file = convolutions(tmp_path / "theirs.onnx", 2)
        times = TARGET.operator_times(file, {"x": np.zeros((1, 4, 8, 8), np.float32)})
        assert {each.layer for each in times if each.operator == "Convolution"} == {"conv0", "y"}

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"picture": np.zeros((1, 1, 16, 16), np.float32)}, "takes the inputs image; given were picture"),
            (
                {"image": np.zeros((1, 3, 16, 16), np.float32)},
                r"takes float32 \(any, 1, 16, 16\); given was .*1, 3, 16, 16",
            ),
            ({"image": np.zeros((1, 1, 16, 16), np.float64)}, "given was float64"),
        ],
    )
    def test_inputs_that_do_not_fit_are_named(
        self, as_float: BuiltEngine, inputs: dict[str, np.ndarray], message: str
    ) -> None:
        with TARGET.open(as_float.path) as engine, pytest.raises(ExportError, match=message):
            engine.run(inputs)


class TestBadFiles:
    @pytest.fixture
    def copied(self, as_float: BuiltEngine, tmp_path: Path) -> Path:
        """A copy of the float engine, to be spoilt."""
        for file in TARGET.files_of(as_float.path):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path / as_float.file

    @pytest.mark.parametrize(
        ("ending", "content", "message"),
        [
            (
                ".xml",
                b"not a model at all",
                r"model\.xml is damaged, or holds what OpenVINO [\d.]+ cannot read: No doc",
            ),
            (".xml", b"<svg></svg>", "is damaged.*it holds no model"),
            (".bin", b"", "is damaged.*Incorrect weights"),
        ],
    )
    def test_damage_is_told_once_and_briefly(
        self, copied: Path, ending: str, content: bytes, message: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        copied.with_suffix(ending).write_bytes(content)
        with pytest.raises(ExportError, match=message) as raised, TARGET.open(copied):
            pass
        assert len(str(raised.value).splitlines()) == 2  # what is wrong, and how to mend it
        assert ".cpp" not in str(raised.value)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("ending", [".xml", ".bin"])
    def test_a_truncated_file_is_refused(self, copied: Path, ending: str) -> None:
        file = copied.with_suffix(ending)
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(ExportError, match="is damaged"), TARGET.open(copied):
            pass

    def test_missing_files_are_named(self, copied: Path) -> None:
        copied.with_suffix(".bin").unlink()
        with pytest.raises(ExportError, match=r"has no model\.bin beside it"), TARGET.open(copied):
            pass
        copied.unlink()
        with pytest.raises(ExportError, match="there is no engine file"), TARGET.open(copied):
            pass

    def test_missing_data_of_an_onnx_file_is_named(self, tmp_path: Path) -> None:
        file = with_data_beside(tmp_path / "model.onnx")
        (tmp_path / "weights.bin").unlink()
        with pytest.raises(ExportError, match=r"is damaged.*weights\.bin"), TARGET.open(file):
            pass

    def test_an_operator_that_it_does_not_know_is_named_and_nothing_stays_behind(self, tmp_path: Path) -> None:
        file = one_operator(tmp_path / "given.onnx", "Frobnicate")
        with pytest.raises(ExportError, match="No conversion rule found for operations: Frobnicate"), TARGET.open(file):
            pass
        folder = tmp_path / "engine"
        folder.mkdir()
        with pytest.raises(ExportError, match=r"cannot convert the exported graph: .*Frobnicate.*\nMend"):
            TARGET.build(onnx.load(file), "fp32", folder)
        assert list(folder.iterdir()) == []


class Chain(nn.Module):
    """A convolution, a constant that is added, and a linear layer on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.positions = nn.Conv2d(1, 32, 4, 4), nn.Parameter(torch.randn(1, 16, 32))
        self.norm, self.expand, self.head = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 4)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.conv(image).flatten(2).transpose(1, 2) + self.positions
        return self.head(torch.relu(self.expand(self.norm(tokens))).mean(1))


@pytest.fixture(scope="module")
def chain() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Chain().eval()


Quantize = Callable[[nn.Module], Quantization]


class TestInt8:
    def test_every_layer_runs_in_int8_and_is_named_with_its_kernel(self, as_int8: BuiltEngine) -> None:
        assert as_int8.audit is not None
        assert {layer.precision for layer in as_int8.audit.layers} == {"int8"}
        assert len(as_int8.audit.layers) == 10
        assert as_int8.audit.int8_share == 1
        assert all("runs as " in layer.reason and " in " in layer.reason for layer in as_int8.audit.layers)

    def test_multiply_accumulates_are_those_of_the_model(
        self, as_int8: BuiltEngine, int8_artifact: Artifact, data: Dataset
    ) -> None:
        assert as_int8.audit is not None
        counted = {layer.name: layer.macs for layer in as_int8.audit.layers}
        assert counted == macs_by_layer(int8_artifact.model, data.example())

    def test_a_float_engine_has_no_int8_layer(self, as_float: BuiltEngine) -> None:
        assert as_float.audit is None
        audit = TARGET.audit(as_float.path, "int8")
        assert audit is not None
        assert audit.int8_share == 0
        assert audit.layers[0].reason == "its input is not quantized: it comes from the model's input"

    def test_symmetric_grids_leave_no_zero_point_to_subtract(
        self, chain: nn.Module, any_blueprint: Blueprint, build: Built, data: Dataset
    ) -> None:
        engine = build(symmetric(chain, any_blueprint, data), "int8")
        assert engine.audit is not None
        assert {layer.name for layer in engine.audit.layers if layer.precision == "int8"} == {"conv", "expand", "head"}
        with TARGET.open(engine.path) as opened:
            names = [each.name for each in opened.graph().operators if "Subtract" in each.name]
        assert names == []

    def test_layers_without_quantizers_are_float_with_a_reason(
        self,
        chain: nn.Module,
        quantize: Quantize,
        any_blueprint: Blueprint,
        data: Dataset,
        metadata: OnnxMetadata,
        tmp_path: Path,
    ) -> None:
        full = quantize(chain)
        assert "expand.weight" in full.weights
        partly = full.model_copy(update={"weights": tuple(name for name in full.weights if name != "expand.weight")})
        artifact = Artifact(model=chain, blueprint=any_blueprint, quantization=partly)
        file = TARGET.build(exported(artifact, "int8", data.example(), metadata), "int8", tmp_path)
        audit = TARGET.audit(file, "int8")
        assert audit is not None
        assert {layer.name: layer.reason for layer in audit.layers if layer.precision == "float"} == {
            "expand": "its weight is not quantized"
        }


def symmetric(model: nn.Module, blueprint: Blueprint, data: Dataset) -> Artifact:
    """The model on symmetric grids, fitted to the test images."""
    from tests.export.conftest import quantized

    return Artifact(model=model, blueprint=blueprint, quantization=quantized(model, data, "symmetric"))


TOKENS = {"tokens": torch.randn(3, 6, 64, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("scheme", ["int8_weights", "int4_weights"])
def test_stored_weights_stay_in_few_bits_where_groups_divide_the_inputs(
    scheme: Scheme, any_blueprint: Blueprint, metadata: OnnxMetadata, tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 72), nn.ReLU(), nn.Linear(72, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    asked = Quantization(
        scheme=scheme, weight_bits=4 if scheme == "int4_weights" else 8, group_size=32, weights=(), activations={}
    )
    quantization = asked.model_copy(update={"weights": placed(capture(model, TOKENS), asked).weights})
    artifact = Artifact(model=model, blueprint=any_blueprint, quantization=quantization)
    file = TARGET.build(exported(artifact, scheme, TOKENS, metadata), scheme, tmp_path)
    audit = TARGET.audit(file, scheme)
    assert audit is not None
    assert {layer.name: layer.precision for layer in audit.layers} == {"0": scheme, "2": "float", "4": scheme}
    assert "groups that divide a layer's inputs" in audit.layers[1].reason
    assert not audit.layers[1].on_purpose
    assert "rounded to int8 as it comes" in TARGET.remarks(file, scheme)[0]
    with TARGET.open(file) as engine, torch.no_grad():
        ours = engine.run({"tokens": TOKENS["tokens"].numpy()})[OUTPUT]
        theirs = artifact.executable(TOKENS)(TOKENS["tokens"]).numpy()
    assert np.abs(ours - theirs).mean() < 0.03 * theirs.std()


class TestSixteenBits:
    def test_fp16_says_how_many_layers_are_computed_so(
        self, build: Built, float_artifact: Artifact, as_float: BuiltEngine
    ) -> None:
        engine = build(float_artifact, "fp16")
        with TARGET.open(engine.path) as opened:
            kernels = [each for each in opened.graph().operators if each.multiplies]
        halves = sum(each.precision == "f16" for each in kernels)
        assert engine.remarks[0].startswith(f"{halves or 'none'} of its 10 convolutions and linear layers")
        assert engine.file_bytes < as_float.file_bytes

    @pytest.mark.skipif(not has_bf16(), reason="this processor does not multiply bfloat16")
    def test_bf16_keeps_in_float32_what_the_graph_keeps_there(
        self, chain: nn.Module, any_blueprint: Blueprint, build: Built
    ) -> None:
        engine = build(Artifact(model=chain, blueprint=any_blueprint), "bf16")
        assert engine.remarks[0] == "3 of its 3 convolutions and linear layers are computed in bf16"
        assert any("norm/LayerNormalization" in remark for remark in engine.remarks[1:])
        with TARGET.open(engine.path) as opened:
            (norm,) = (each for each in opened.graph().operators if "norm/LayerNormalization|MVN" in each.name)
        assert norm.precision == "f32"

    @pytest.mark.skipif(has_bf16(), reason="this processor multiplies bfloat16")
    def test_bf16_is_refused_where_the_processor_has_it_not(self) -> None:
        with pytest.raises(ExportError, match="does not multiply bfloat16 itself"):
            OpenVinoTarget(precision=("bf16",)).check()


class TestProfile:
    def test_what_the_first_runs_took_is_in_no_call(self) -> None:
        operators = [
            RuntimeOperator(name=name, kind="Convert", precision="f32", kernel="unknown_f32", nodes=(f"{name}/Cast",))
            for name in ("slow.at.first", "steady", "too.short")
        ]
        sums = [
            {"slow.at.first": 6.0, "steady": 0.2},
            {"slow.at.first": 6.01, "steady": 0.3, "too.short": 0.0},
            {"slow.at.first": 6.03, "steady": 0.4},
        ]
        first, second = each_call(operators, sums)
        assert first == [pytest.approx(0.01), pytest.approx(0.1), 0]
        assert second == [pytest.approx(0.02), pytest.approx(0.1), 0]

    def test_operators_of_some_runs_take_no_longer_than_these(self, as_int8: BuiltEngine, data: Dataset) -> None:
        with Engine(as_int8.path, profile=True) as engine:
            engine.bind(numpy_inputs(data.example(1)))
            before, began = engine.summed(2), perf_counter()
            after, whole = engine.summed(20), perf_counter() - began
            (times,) = each_call(engine.graph().operators, [before, after])
        # What is summed before is cut to whole microseconds an operator and run.
        assert 0 < sum(times) <= 1e3 * whole + 0.003 * len(times)

    def test_operators_are_the_same_in_each_profile(self, as_int8: BuiltEngine, data: Dataset) -> None:
        inputs = numpy_inputs(data.example(1))
        first, second = (
            [(each.layer, each.operator) for each in TARGET.operator_times(as_int8.path, inputs)] for _ in range(2)
        )
        assert first == second
        with TARGET.open(as_int8.path) as engine:
            engine.bind(inputs)
            assert [operator for _, operator in first] == [each.kind for each in engine.graph().operators]
