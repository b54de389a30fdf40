"""What tests of the run folder do in another process, to kill or to limit it: ``run_folder_child.py VERB FOLDER``."""

import os
import resource
import signal
import sys
import time
import types
from pathlib import Path

potstill = types.ModuleType("potstill")
potstill.__path__ = [str(Path(__file__).parents[2])]
sys.modules["potstill"] = potstill

from potstill.pipeline.errors import RunFolderError  # noqa: E402 - potstill is this checkout from here on
from potstill.pipeline.run_folder import Reuse, RunFolder  # noqa: E402

PART = "01-train/artifact"
FILES = ("blueprint.json", "weights/model.safetensors")


def write(folder: Path, content: str) -> None:
    """Make the part, every file holding `content`; it is also its fingerprint."""
    with RunFolder.open(folder) as run, run.writing(PART, content) as aside:
        for name in FILES:
            (aside / name).parent.mkdir(exist_ok=True)
            (aside / name).write_text(content * 1000)


def kill_at_every_step(folder: Path) -> None:
    """Replace the part, killed at the first file operation, then at the second, and so on until one replacing ends.

    After each kill exactly one of both contents must be there, whole and recorded, and nothing else.
    """
    contents: list[str] = []
    for step in range(1, 1000):
        write(folder, "old")
        child = os.fork()
        if child == 0:
            die_at(step, folder)
            write(folder, "new")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        contents.append(only_content(folder))
        if os.WIFEXITED(status):
            break
    print(" ".join(contents))


def die_at(step: int, folder: Path) -> None:
    """Have this process killed just before its n-th operation on files of the folder."""
    left = step

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and str(folder) in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def only_content(folder: Path) -> str:
    """The one content that the folder holds after it was opened again."""
    with RunFolder.open(folder) as run:
        states = {content: run.state(PART, content) for content in ("old", "new")}
    whole = [content for content, state in states.items() if isinstance(state, Reuse)]
    assert len(whole) == 1, states
    for name in FILES:
        assert (folder / PART / name).read_text() == whole[0] * 1000
    found = {path.name for path in folder.iterdir()} - {".lock"}
    assert found == {"manifest.json", "01-train", ".aside"}, found
    assert not list((folder / ".aside").iterdir())
    assert [path.name for path in (folder / "01-train").iterdir()] == ["artifact"]
    return whole[0]


def stop_in_the_middle(folder: Path) -> None:
    """Begin to replace the part, say so, and never end."""
    with RunFolder.open(folder) as run, run.writing(PART, "new") as aside:
        (aside / FILES[0]).write_text("half")
        print("writing", flush=True)
        time.sleep(600)


def hold_with_a_worker(folder: Path) -> None:
    """Hold the folder and fork a worker that lives on when this process is killed."""
    with RunFolder.open(folder):
        worker = os.fork()
        if worker == 0:
            print(os.getpid(), flush=True)  # by itself: from here on it has let go of the lock
            time.sleep(600)
            os._exit(0)
        time.sleep(600)


def write_too_much(folder: Path) -> None:
    """Replace the part by more than this process may write; print the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        write(folder, "new" * 100)
    except RunFolderError as error:
        print(error)


if __name__ == "__main__":
    verb, path = sys.argv[1:]
    {
        "kill_at_every_step": kill_at_every_step,
        "stop_in_the_middle": stop_in_the_middle,
        "hold_with_a_worker": hold_with_a_worker,
        "write_too_much": write_too_much,
    }[verb](Path(path))
