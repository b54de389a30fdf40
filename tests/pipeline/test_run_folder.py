"""Facts about a run's folder: what kills, other processes, full disks and damage do to it."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from potstill.pipeline.errors import RunFolderError, StageError
from potstill.pipeline.fingerprints import code_fingerprint, fingerprint
from potstill.pipeline.run_folder import Reuse, RunFolder, Stale
from potstill.pipeline.storage_errors import folder_problem, storage_errors

CHILD = Path(__file__).with_name("run_folder_child.py")
PART = "01-train/artifact"

needs_full_device = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="this system has no /dev/full to stand for a full disk"
)


def write(folder: Path, content: str, *, part: str = PART) -> None:
    with RunFolder.open(folder) as run, run.writing(part, content) as aside:
        (aside / "weights").mkdir()
        (aside / "weights" / "model.txt").write_text(content)
        (aside / "notes.txt").write_text(content)


def write_and_fail(run: RunFolder, error: BaseException) -> None:
    with run.writing(PART, "b") as aside:
        (aside / "half.txt").write_text("b")
        raise error


def write_to_full_disk(run: RunFolder) -> None:
    with run.writing(PART, "new") as aside:
        (aside / "weights.bin").symlink_to("/dev/full")
        (aside / "weights.bin").write_bytes(b"x" * 100_000)


def train_on_full_disk(folder: Path) -> None:
    with RunFolder.open(folder) as run:
        checkpoint = run.checkpoints("01-train", "f") / "state"
        checkpoint.symlink_to("/dev/full")
        checkpoint.write_bytes(b"x" * 100_000)


def reason(folder: Path, fingerprint: str) -> str:
    with RunFolder.open(folder) as run:
        state = run.state(PART, fingerprint)
    assert isinstance(state, Stale)
    return state.reason


@pytest.fixture
def child() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that a test starts; none of them outlives it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(verb: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(CHILD), verb, str(folder)], stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


class TestParts:
    def test_a_finished_part_is_reused_by_a_later_process_of_the_same_fingerprint(self, tmp_path: Path):
        write(tmp_path / "run", "a")
        with RunFolder.open(tmp_path / "run") as run:
            assert run.reusable(PART, "a") == tmp_path / "run" / PART
            assert run.state(PART, "a") == Reuse(tmp_path / "run" / PART)
        assert (tmp_path / "run" / PART / "weights/model.txt").read_text() == "a"

    def test_a_part_never_made_or_made_from_something_else_is_stale(self, tmp_path: Path):
        write(tmp_path, "a")
        assert "changed" in reason(tmp_path, "b")
        with RunFolder.open(tmp_path) as run:
            assert run.state("02-prune/artifact", "a") == Stale("")
            assert run.reusable("02-prune/artifact", "a") is None

    def test_writing_again_replaces_every_file_of_the_old_part(self, tmp_path: Path):
        write(tmp_path, "a")
        with RunFolder.open(tmp_path) as run:
            with run.writing(PART, "b") as aside:
                (aside / "other.txt").write_text("b")
            assert isinstance(run.state(PART, "b"), Reuse)
        assert [path.name for path in (tmp_path / PART).iterdir()] == ["other.txt"]

    def test_other_parts_stay_as_they_are(self, tmp_path: Path):
        write(tmp_path, "a")
        write(tmp_path, "b", part="02-prune/artifact")
        with RunFolder.open(tmp_path) as run:
            assert isinstance(run.state(PART, "a"), Reuse)

    @pytest.mark.parametrize("error", [StageError("no"), KeyboardInterrupt()])
    def test_a_block_that_fails_leaves_the_old_part_and_no_trace_of_the_new(self, tmp_path: Path, error: BaseException):
        write(tmp_path, "a")
        with RunFolder.open(tmp_path) as run:
            with pytest.raises(type(error)):
                write_and_fail(run, error)
            assert isinstance(run.state(PART, "a"), Reuse)
        assert not list((tmp_path / ".aside").iterdir())

    def test_the_manifest_says_version_fingerprint_hashes_and_time(self, tmp_path: Path):
        write(tmp_path, "a")
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert manifest["version"] == 1
        assert set(manifest["parts"][PART]) == {"fingerprint", "files", "finished"}
        assert set(manifest["parts"][PART]["files"]) == {"weights/model.txt", "notes.txt"}


class TestDamage:
    def test_a_changed_file_is_noticed_and_named(self, tmp_path: Path):
        write(tmp_path, "a")
        (tmp_path / PART / "weights/model.txt").write_text("b")
        assert reason(tmp_path, "a") == "weights/model.txt was changed or damaged since it was written"

    def test_a_lost_file_is_noticed_and_named(self, tmp_path: Path):
        write(tmp_path, "a")
        (tmp_path / PART / "notes.txt").unlink()
        assert reason(tmp_path, "a") == "notes.txt is gone"

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"version": 1}', '{"version": "x"}', "\x00\xff"])
    def test_a_damaged_manifest_is_refused_until_the_user_asks_for_a_fresh_run(self, tmp_path: Path, content: str):
        write(tmp_path, "a")
        (tmp_path / "manifest.json").write_text(content, encoding="latin-1")
        with pytest.raises(RunFolderError, match=r"manifest\.json is damaged .*--fresh"):
            RunFolder.open(tmp_path)
        assert (tmp_path / PART / "notes.txt").read_text() == "a"
        with RunFolder.open(tmp_path, fresh=True) as run:
            assert run.state(PART, "a") == Stale("")

    @pytest.mark.parametrize("fresh", [False, True])
    def test_a_folder_of_a_newer_version_is_never_touched(self, tmp_path: Path, fresh: bool):
        write(tmp_path, "a")
        newer = json.dumps({"version": 2, "potstill": "9.0", "parts": {}, "more": 1})
        (tmp_path / "manifest.json").write_text(newer)
        with pytest.raises(RunFolderError, match=r"written by potstill 9\.0 \(manifest version 2.*update potstill"):
            RunFolder.open(tmp_path, fresh=fresh)
        assert (tmp_path / "manifest.json").read_text() == newer

    def test_after_a_refusal_the_folder_is_not_locked(self, tmp_path: Path):
        write(tmp_path, "a")
        whole = (tmp_path / "manifest.json").read_text()
        (tmp_path / "manifest.json").write_text("{")
        with pytest.raises(RunFolderError, match="damaged"):
            RunFolder.open(tmp_path)
        (tmp_path / "manifest.json").write_text(whole)
        RunFolder.open(tmp_path).close()


class TestFresh:
    def test_it_forgets_parts_and_checkpoints_and_keeps_other_files(self, tmp_path: Path):
        write(tmp_path, "a")
        (tmp_path / "mine.txt").write_text("a note of the user's")
        with RunFolder.open(tmp_path) as run:
            (run.checkpoints("02-prune", "f") / "state").write_text("s")
        with RunFolder.open(tmp_path, fresh=True) as run:
            assert run.state(PART, "a") == Stale("")
            assert not list(run.checkpoints("02-prune", "f").iterdir())
        assert not (tmp_path / PART).exists()
        assert (tmp_path / "mine.txt").exists()


class TestKills:
    def test_a_kill_at_any_file_operation_leaves_the_old_part_or_the_new_one(self, tmp_path: Path):
        process = start("kill_at_every_step", tmp_path)
        contents = process.communicate(timeout=100)[0].split()
        assert process.returncode == 0
        turn = contents.index("new")
        assert contents[:turn] == ["old"] * turn
        assert contents[turn:] == ["new"] * (len(contents) - turn)
        assert turn > 5
        assert len(contents) - turn > 5

    def test_after_a_kill_in_the_middle_of_writing_the_old_part_is_reused(
        self, tmp_path: Path, child: list[subprocess.Popen[str]]
    ):
        write(tmp_path, "old")
        child.append(start("stop_in_the_middle", tmp_path))
        assert first_line(child[0]) == "writing"
        child[0].kill()
        child[0].wait()
        with RunFolder.open(tmp_path) as run:
            assert isinstance(run.state(PART, "old"), Reuse)
        assert not list((tmp_path / ".aside").iterdir())


class TestLock:
    def test_a_second_process_is_refused_while_the_first_lives(
        self, tmp_path: Path, child: list[subprocess.Popen[str]]
    ):
        child.append(start("stop_in_the_middle", tmp_path))
        assert first_line(child[0]) == "writing"
        with pytest.raises(RunFolderError, match=rf"in use by process {child[0].pid} on .*wait until it ends"):
            RunFolder.open(tmp_path)

    def test_the_same_process_is_refused_too(self, tmp_path: Path):
        with RunFolder.open(tmp_path), pytest.raises(RunFolderError, match=f"process {os.getpid()}"):
            RunFolder.open(tmp_path)

    def test_a_worker_that_outlives_its_killed_parent_does_not_keep_the_lock(
        self, tmp_path: Path, child: list[subprocess.Popen[str]]
    ):
        child.append(start("hold_with_a_worker", tmp_path))
        worker = int(first_line(child[0]))
        try:
            child[0].kill()
            child[0].wait()
            os.kill(worker, 0)
            RunFolder.open(tmp_path).close()
        finally:
            os.kill(worker, signal.SIGKILL)


class TestCheckpoints:
    def test_they_stay_for_the_same_fingerprint_and_go_for_another(self, tmp_path: Path):
        with RunFolder.open(tmp_path) as run:
            (run.checkpoints("02-prune", "a" * 64) / "state").write_text("s")
            other_step = run.checkpoints("02-prune-again", "a" * 64)
        with RunFolder.open(tmp_path) as run:
            assert (run.checkpoints("02-prune", "a" * 64) / "state").read_text() == "s"
            assert not list(run.checkpoints("02-prune", "b" * 64).iterdir())
            assert not list(run.checkpoints("02-prune", "a" * 64).iterdir())
            assert other_step.is_dir()

    def test_those_of_a_finished_step_are_discarded(self, tmp_path: Path):
        with RunFolder.open(tmp_path) as run:
            folder = run.checkpoints("02-prune", "a" * 64)
            run.discard_checkpoints("02-prune")
            run.discard_checkpoints("02-prune")
        assert not folder.exists()


class TestFiles:
    def test_a_file_is_replaced_as_a_whole(self, tmp_path: Path):
        with RunFolder.open(tmp_path) as run:
            run.write_file("report.md", "first, and longer")
            run.write_file("report.md", "zweitens: ü")
            run.write_file("02-prune/notes.md", "x")
        assert (tmp_path / "report.md").read_text(encoding="utf-8") == "zweitens: ü"

    def test_left_overs_of_a_killed_writer_are_removed(self, tmp_path: Path):
        (tmp_path / "report.md.aside").write_text("half")
        RunFolder.open(tmp_path).close()
        assert not (tmp_path / "report.md.aside").exists()


class TestStorage:
    def test_a_file_that_outgrows_its_limit_is_told_and_the_old_part_stays(self, tmp_path: Path):
        write(tmp_path, "old")
        process = start("write_too_much", tmp_path)
        assert "outgrew what this process may write; raise `ulimit -f`" in process.communicate(timeout=60)[0]
        with RunFolder.open(tmp_path) as run:
            assert isinstance(run.state(PART, "old"), Reuse)

    @needs_full_device
    def test_a_full_disk_is_told_and_the_old_part_stays(self, tmp_path: Path):
        write(tmp_path, "old")
        with RunFolder.open(tmp_path) as run:
            with pytest.raises(RunFolderError, match=r"no disk space left .* free some and run again"):
                write_to_full_disk(run)
            assert isinstance(run.state(PART, "old"), Reuse)

    @needs_full_device
    def test_a_full_disk_under_a_training_is_told_when_the_run_ends(self, tmp_path: Path):
        with pytest.raises(RunFolderError, match="no disk space left"):
            train_on_full_disk(tmp_path)

    def test_a_full_disk_is_recognised_in_the_words_of_other_libraries(self, tmp_path: Path):
        for words in ("I/O error: No space left on device (os error 28)", "write failed: No space left on device"):
            with pytest.raises(RunFolderError, match="no disk space left"), storage_errors(tmp_path):
                raise RuntimeError(words)

    def test_errors_that_are_not_about_the_folder_stay_what_they_are(self, tmp_path: Path):
        elsewhere = PermissionError(errno.EACCES, "Permission denied", "/etc/shadow")
        for error in (elsewhere, FileNotFoundError("data.npz"), ValueError("no"), StageError("no space left")):
            with pytest.raises(type(error)) as raised, storage_errors(tmp_path):
                raise error
            assert raised.value is error

    def test_a_file_in_the_way_of_the_folder_is_told(self, tmp_path: Path):
        (tmp_path / "run").write_text("")
        for folder in (tmp_path / "run", tmp_path / "run" / "digits"):
            with pytest.raises(RunFolderError, match="is not a folder, or a file is in its way"):
                RunFolder.open(folder)
            assert "is a file, not a folder" in (folder_problem(folder) or "")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
    def test_a_folder_that_is_not_writable_is_told(self, tmp_path: Path):
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(RunFolderError, match="not writable; change its permissions"):
                RunFolder.open(tmp_path / "run")
            assert "not writable" in (folder_problem(tmp_path / "run") or "")
        finally:
            tmp_path.chmod(0o700)

    @pytest.mark.skipif(
        not Path("/sys/kernel").is_dir(), reason="this system has no /sys, which even root cannot write"
    )
    def test_a_file_system_that_is_not_writable_is_told(self):
        with pytest.raises(RunFolderError, match="/sys/kernel/run is not writable; change its permissions"):
            RunFolder.open(Path("/sys/kernel/run"))

    def test_too_little_space_is_found_before_the_run(self, tmp_path: Path):
        assert folder_problem(tmp_path / "new" / "run", needed_bytes=1000) is None
        assert "free some space" in (folder_problem(tmp_path / "new" / "run", needed_bytes=10**18) or "")
        assert not (tmp_path / "new").exists()


class TestFingerprints:
    def test_the_order_of_keys_does_not_matter_and_everything_else_does(self):
        same = {fingerprint({"a": 1, "b": [1, 2]}), fingerprint({"b": [1, 2], "a": 1})}
        others = {fingerprint({"a": 1, "b": [2, 1]}), fingerprint({"a": 1.5}), fingerprint("a", "b"), fingerprint("ab")}
        assert len(same) == 1
        assert len(same | others) == 5

    def test_numbers_that_json_does_not_know_are_refused(self):
        with pytest.raises(ValueError, match="JSON"):
            fingerprint(torch.nan)

    def test_code_is_told_apart_by_its_source_and_found_with_or_without_the_packages_name(self):
        assert code_fingerprint("potstill.pipeline.data") == code_fingerprint("pipeline.data")
        assert code_fingerprint("potstill.pipeline.data") != code_fingerprint("potstill.pipeline.models")
        assert code_fingerprint("potstill.pipeline.sources") != code_fingerprint("potstill.pipeline.sources.npz")

    def test_code_that_does_not_exist_is_a_mistake_of_ours(self):
        with pytest.raises(AssertionError, match="no module of potstill"):
            code_fingerprint("potstill.pipeline.gone")
