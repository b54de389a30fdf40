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
WEIGHTS = SHARED / "weights/cifar10"

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
    ("name", "teacher", "num_stages", "macs"),
    [("cifar10-resnet56", 56, 3, 82.2e6), ("cifar10-resnet56-full", 20, 2, 90.0e6)],
)
def test_the_recipes_for_cifar10_run_on_a_few_images(
    name: str, teacher: int, num_stages: int, macs: float, some_images: Path, tmp_path: Path
) -> None:
    """The full one with a smaller teacher, and without its last stage, which is the quick one's but for its epochs."""
    brief = [
        *(f"data.path={some_images}", "data.validation=32", "data.views=1", "data.batch_size=32"),
        *(f"teacher.model.depth={teacher}", f"teacher.weights={WEIGHTS / f'resnet{teacher}.safetensors'}"),
        *("stages.distill.epochs=1", "stages.quantize.recover.epochs=0"),
        *("stages.prune.keep={macs: 0.6}", "stages.prune.recover.epochs=1", "targets[0].precision=[int8]"),
        "goals={}",
    ]
    recipe = load_recipe(ROOT / f"configs/{name}.yaml", brief)
    recipe = recipe.model_copy(update={"stages": recipe.stages[:num_stages]})
    report = run(recipe, directory=tmp_path, folder=tmp_path / "runs", progress=Silent())
    taught_by, distilled, *quantized = report.steps
    assert taught_by.engine.score.value > 0.88
    assert distilled.engine.precision == "fp32"
    assert distilled.macs == pytest.approx(macs, rel=0.01)
    assert {step.engine.precision for step in quantized} == {"int8"}
    assert all(step.engine.parity.passed for step in report.steps)
    if len(quantized) > 1:
        assert quantized[1].macs < 0.6 * quantized[0].macs
