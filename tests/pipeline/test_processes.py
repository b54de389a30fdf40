"""Facts about several processes that train together."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from potstill.pipeline.errors import TrainingError
from potstill.pipeline.journal import CurvePoint
from potstill.pipeline.processes import ALONE, Processes, dist, joined
from potstill.pipeline.training import Schedule, TaskObjective, fit
from tests.support.command_line import command
from tests.support.shared_trainings import ABOUT_ALIKE, TRAININGS, apart, context_of, network, train_until_one_dies

CHILD = Path(__file__).parent / "processes_child.py"

needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="several processes need accelerate: not installed"
)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def pair(*arguments: str | Path) -> tuple[Ended, Ended]:
    """Two processes that know of each other, as `torchrun` starts them: the main one, and the other."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    known = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            list(map(str, arguments)),
            env={**os.environ, **known, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in started]
    main, other = (Ended(process.returncode, *output) for process, output in zip(started, outputs, strict=True))
    return main, other


def first_weights(name: str, folder: Path) -> dict[str, Tensor]:
    return {} if name == "task" else network(context_of(folder, "first").data, 0, 8).model.state_dict()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended, Ended]:
    """The folder that two processes left, and how they ended: in the last training, one of them is killed."""
    folder = tmp_path_factory.mktemp("together")
    return folder, *pair(sys.executable, CHILD, folder)


@needs_accelerate
class TestTrainingTogether:
    @pytest.mark.parametrize("name", TRAININGS)
    def test_ends_as_one_process_does(self, name: str, together: tuple[Path, Ended, Ended], tmp_path: Path) -> None:
        folder, main, _ = together
        assert (folder / f"{name}.safetensors").exists(), main.err
        context = context_of(tmp_path, name)
        alone = {key: value.clone() for key, value in TRAININGS[name](context).items()}
        shared = load_file(folder / f"{name}.safetensors")
        assert apart(alone, shared, first_weights(name, tmp_path)) < ABOUT_ALIKE
        curve = [CurvePoint.model_validate_json(line) for line in (folder / f"{name}.curve").read_text().splitlines()]
        for mine, theirs in zip(context.journal.curve, curve, strict=True):
            assert theirs.terms == pytest.approx(mine.terms, rel=1e-4, abs=1e-5)
            assert theirs.validation == mine.validation
            assert (theirs.gradient_shares or {}) == pytest.approx(mine.gradient_shares or {}, rel=1e-2, abs=1e-3)

    def test_stores_the_teachers_outputs_as_one_process_does(
        self, together: tuple[Path, Ended, Ended], tmp_path: Path
    ) -> None:
        TRAININGS["quantized"](context_of(tmp_path, "quantized"))
        mine, theirs = (sorted(path.name for path in each.glob("stored/*/*")) for each in (tmp_path, together[0]))
        assert mine == theirs != []


@needs_accelerate
class TestADeadProcess:
    def test_ends_the_others_with_a_word(self, together: tuple[Path, Ended, Ended]) -> None:
        _, main, other = together
        assert other.code == -9
        assert main.code == 1
        assert main.err.splitlines()[-1].startswith("potstill: process 1 (pid ")
        assert "goes on from the last checkpoint" in main.err

    def test_leaves_what_one_process_goes_on_from(self, together: tuple[Path, Ended, Ended], tmp_path: Path) -> None:
        resumed = context_of(together[0], "dying")
        state = {key: value.clone() for key, value in train_until_one_dies(resumed).items()}
        undisturbed = context_of(tmp_path, "undisturbed")
        expected = train_until_one_dies(undisturbed)
        assert apart(expected, state, first_weights("dying", tmp_path)) < ABOUT_ALIKE
        assert len(resumed.journal.curve) == len(undisturbed.journal.curve) == 3
        # The two processes' sums of the first epoch, which the checkpoint kept, are those of another order.
        assert resumed.journal.curve[0] != undisturbed.journal.curve[0]


@needs_accelerate
class TestARunOfSeveralProcesses:
    RECIPE = """
        name: small
        task: classification
        precision: fp32
        data: {source: digits, size: 8, batch_size: 64}
        teacher: {model: {name: resnet, depth: 8, width: 4}}
        stages: [{stage: train, epochs: 1}]
        targets: [{runtime: onnxruntime, device: cpu, precision: [fp32], batch: [1]}]
    """

    def test_is_written_and_told_by_one(self, tmp_path: Path) -> None:
        (tmp_path / "small.yaml").write_text(self.RECIPE)
        main, other = pair(*command("run", tmp_path / "small.yaml", "--runs-dir", tmp_path / "runs"))
        assert (main.code, other.code) == (0, 0), main.err + other.err
        assert (tmp_path / "runs" / "small" / "report.json").exists()
        assert "01-train: starts" in main.err
        assert other.out == other.err == ""


class TestOneProcess:
    def test_is_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with joined() as processes:
            assert processes is ALONE
            assert processes.main
            assert processes.told(lambda: {"step": 3}) == {"step": 3}

    def test_of_several_refuses_batches_that_cannot_be_shared(self, tmp_path: Path) -> None:
        context = context_of(tmp_path, "odd", Processes(rank=0, count=3))
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))
        with pytest.raises(TrainingError, match="3 processes cannot share batches of 16 samples evenly"):
            fit(model, TaskObjective(context), Schedule(epochs=1), context)
