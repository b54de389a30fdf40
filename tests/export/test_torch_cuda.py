"""Facts about PyTorch's engines on a GPU, eager and compiled; without one they are skipped."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.export.deliver import OnnxMetadata
from potstill.export.engine_process import EngineProcess
from potstill.export.parity import numpy_inputs, parity_of
from potstill.export.runtimes.inductor_runtime import InductorTarget
from potstill.export.runtimes.pytorch_runtime import PyTorchTarget
from potstill.export.target import Source, Target
from potstill.export.torch_engine import TorchEngine
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import MissingDependency

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

TARGETS: dict[str, type[PyTorchTarget] | type[InductorTarget]] = {"pytorch": PyTorchTarget, "inductor": InductorTarget}
LIMITS = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2}
"""Of the largest output; with TF32, fp32 would be off by about 1e-3."""

Built = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def built(
    float_artifact: Artifact, data: Dataset, metadata: OnnxMetadata, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """Builds an engine of a runtime in a precision, once."""
    source = Source(artifact=float_artifact, data=data, metadata=metadata)
    files: dict[tuple[str, str], Path] = {}

    def build(runtime: str, precision: str) -> Path:
        if (runtime, precision) not in files:
            target = new_target(runtime, precision)
            try:
                target.check()
            except MissingDependency as error:
                pytest.skip(str(error))
            files[runtime, precision] = target.make(source, precision, tmp_path_factory.mktemp(runtime)).file
        return files[runtime, precision]

    return build


def new_target(runtime: str, precision: str = "fp32", **settings: Any) -> Target:
    """On the GPU."""
    return TARGETS[runtime].model_validate({"device": "cuda", "precision": [precision], **settings})


class TestCuda:
    @pytest.mark.parametrize(("runtime", "precision"), [*itertools.product(TARGETS, LIMITS)])
    def test_it_computes_what_the_model_does_on_the_cpu(
        self, runtime: str, precision: str, built: Built, float_artifact: Artifact, data: Dataset
    ) -> None:
        file = built(runtime, precision)
        with new_target(runtime, precision).open(file) as engine:
            parity = parity_of(engine, float_artifact, data, precision)
            description = engine.describe()
        assert parity.max_relative < LIMITS[precision]
        assert description.provider == f"torch {torch.__version__} {torch.cuda.get_device_name()}"
        assert description.operators

    @pytest.mark.parametrize("runtime", [*TARGETS])
    def test_host_and_device_clocks_agree(self, runtime: str, built: Built, data: Dataset) -> None:
        with new_target(runtime).open(built(runtime, "fp32")) as engine:
            engine.bind(numpy_inputs(data.example(8)))
            engine.timed(20)
            host, device = engine.timed(50), engine.device_timed(50)
            held = engine.device_memory_bytes()
        assert device is not None
        assert (device > 0).all()
        # The host waits for the end, and so sees at least what lies between the two events.
        assert np.median(device) < 1.5 * np.median(host)
        assert held is not None
        assert held >= 0

    @pytest.mark.parametrize("runtime", [*TARGETS])
    def test_a_recorded_graph_gives_what_a_run_gives(self, runtime: str, built: Built, data: Dataset) -> None:
        file, inputs = built(runtime, "fp32"), numpy_inputs(data.example(4))
        with new_target(runtime, cuda_graph=True).open(file) as engine:
            assert isinstance(engine, TorchEngine)
            engine.bind(inputs)
            engine.timed(3)
            recorded = engine._graph_output
            assert recorded is not None
            recorded.zero_()
            engine.timed(1)
            np.testing.assert_allclose(recorded.cpu().numpy(), engine.run(inputs)["logits"], rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("runtime", [*TARGETS])
    def test_kernels_are_timed(self, runtime: str, built: Built, data: Dataset) -> None:
        times = new_target(runtime).operator_times(built(runtime, "fp32"), numpy_inputs(data.example(2)))
        assert times
        assert all(each.ms > 0 for each in times)
        assert ("layer1.0.conv1" in {each.layer for each in times}) == (runtime == "pytorch")

    @pytest.mark.parametrize("runtime", [*TARGETS])
    def test_a_process_of_its_own_runs_it(self, runtime: str, built: Built, data: Dataset) -> None:
        with EngineProcess(new_target(runtime), built(runtime, "fp32")) as process:
            process.bind(numpy_inputs(data.example(1)))
            assert process.timed(3).shape == (3,)
            assert process.device_timed(3) is not None
            held = process.device_memory_bytes()
        assert held is not None
        assert held > 0
