"""One of several processes that train together, until the last training, which one of them does not survive.

python processes_child.py FOLDER
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main(folder: Path) -> int:
    """Make the trainings; the main process leaves what they ended with in the folder."""
    from safetensors.torch import save_file

    from potstill.pipeline import training
    from potstill.pipeline.errors import LostProcessError
    from potstill.pipeline.processes import joined
    from tests.support.shared_trainings import TRAININGS, context_of, train_until_one_dies

    try:
        with joined() as processes:
            for name, train in TRAININGS.items():
                context = context_of(folder, name, processes)
                state = {key: value.clone() for key, value in train(context).items()}
                if processes.main:
                    save_file(state, folder / f"{name}.safetensors")
                    story = "".join(point.model_dump_json() + "\n" for point in context.journal.curve)
                    (folder / f"{name}.curve").write_text(story)
            training.CHECKPOINT_SECONDS = 0.0
            train_until_one_dies(context_of(folder, "dying", processes))
    except LostProcessError as error:
        print(f"potstill: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    runpy.run_path(str(ROOT / "conftest.py"))
    sys.path.insert(0, str(ROOT))
    sys.exit(main(Path(sys.argv[1])))
