"""Check the TensorRT runtime strictly under the type stubs of each version that it has to run with.

    python tests/typing/check_tensorrt.py [FOLDER]

FOLDER holds one folder of stubs for each version, by default ``../shared/typings`` from the root. Where there is none,
nothing is checked, which is said; the exit code is then 0.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("tensorrt10", "tensorrt11")
CHECKED = ("export/tensorrt/native", "export/runtimes/tensorrt_runtime.py")


def settings(stubs: Path) -> dict[str, object]:
    """Of basedpyright: everything strict, `tensorrt` found among the stubs alone."""
    return {
        "include": [str(ROOT / name) for name in CHECKED],
        "stubPath": str(stubs),
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "reportMissingModuleSource": False,  # the package itself is not needed
        # In the stubs `bool` is a DataType, so what returns one is unknown; a name that is not there is an error still.
        "reportUnknownMemberType": False,
    }


def started(stubs: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """basedpyright with the settings for one version."""
    file = folder / f"{stubs.name}.json"
    file.write_text(json.dumps(settings(stubs)))
    command = [sys.executable, "-m", "basedpyright", "--project", str(file), "--pythonpath", sys.executable]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def main(folder: Path) -> int:
    """Check under every version's stubs; 0 where all are clean, or none are there."""
    found = [folder / version for version in VERSIONS if (folder / version / "tensorrt.pyi").is_file()]
    if not found:
        print(f"tensorrt: not type-checked under its stubs, as there are none in {folder}")
        return 0
    with TemporaryDirectory() as settings_folder:
        processes = {stubs.name: started(stubs, Path(settings_folder)) for stubs in found}
        said = {name: process.communicate()[0].decode() for name, process in processes.items()}
    for name, words in said.items():
        print(f"{name}: {words.strip()}")
    return max(process.returncode for process in processes.values())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "typings"))
