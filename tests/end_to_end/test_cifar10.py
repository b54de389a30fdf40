"""A fact about the recipes for CIFAR-10: they run from the real images and the real teacher to int8 engines."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from potstill.pipeline.progress import Silent
from potstill.pipeline.recipe import load_recipe
from potstill.pipeline.runner import run

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
ARCHIVE = SHARED / "data/cifar10/test.npz"
WEIGHTS = SHARED / "weights/cifar10/resnet56.safetensors"

IMAGES = 160


@pytest.fixture(scope="module")
def some_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `train.npz` and `test.npz` with a few of the real images, none in both."""
    folder = tmp_path_factory.mktemp("cifar10")
    images, labels = runpy.run_path(str(SHARED / "tools/unpack_data.py"))["load"](ARCHIVE)
    for number, split in enumerate(("train", "test")):
        part = slice(number * IMAGES, (number + 1) * IMAGES)
        np.savez(folder / f"{split}.npz", x=images[part], y=labels[part])
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not (ARCHIVE.exists() and WEIGHTS.exists()), reason="CIFAR-10 or its teacher is not in ../shared")
@pytest.mark.parametrize(
    ("name", "num_stages", "share"), [("cifar10-resnet56", 3, 0.7), ("cifar10-resnet56-full", 2, 0.75)]
)
def test_the_recipes_for_cifar10_run_on_a_few_images(
    name: str, num_stages: int, share: float, some_images: Path
) -> None:
    """In one folder of runs; the full one without its last stage, which is the quick one's but for its epochs."""
    brief = [
        *(f"data.path={some_images}", "data.validation=32", "data.views=1", "data.batch_size=32"),
        *(f"teacher.weights={WEIGHTS}", "stages.distill.epochs=1", "stages.quantize.recover.epochs=0"),
        *("stages.prune.keep={macs: 0.6}", "stages.prune.recover.epochs=1", "targets[0].precision=[int8]"),
        "goals={}",
    ]
    recipe = load_recipe(ROOT / f"configs/{name}.yaml", brief)
    recipe = recipe.model_copy(update={"stages": recipe.stages[:num_stages]})
    report = run(recipe, directory=some_images, folder=some_images / "runs", progress=Silent())
    teacher, distilled, *quantized = report.steps
    assert teacher.engine.score.value > 0.88
    assert distilled.engine.precision == "fp32"
    assert distilled.macs < share * teacher.macs
    assert {step.engine.precision for step in quantized} == {"int8"}
    assert all(step.engine.parity.passed for step in report.steps)
    if len(quantized) > 1:
        assert quantized[1].macs < 0.6 * quantized[0].macs
