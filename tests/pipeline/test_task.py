"""Facts about what a model is for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from potstill.pipeline.data import Dataset, Split
from potstill.pipeline.errors import DataError, RecipeError
from potstill.pipeline.sources.digits import Digits
from potstill.pipeline.task import Classification, task_named


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Digits(size=8).load(Path())


def test_a_sure_and_right_answer_costs_nothing_and_an_unsure_one_log_of_the_classes():
    target = torch.tensor([0, 2])
    sure = torch.nn.functional.one_hot(target, 4) * 100.0
    task = Classification()
    assert float(task.loss(sure, target)) == pytest.approx(0, abs=1e-6)
    assert float(task.loss(torch.zeros(2, 4), target)) == pytest.approx(1.3863, abs=1e-4)


def test_the_loss_of_half_precision_outputs_is_taken_in_full_precision():
    assert Classification().loss(torch.zeros(2, 4, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32


def test_a_sample_is_right_whose_largest_output_is_the_targets():
    outputs = torch.tensor([[3.0, 1.0], [0.0, 2.0], [5.0, 4.0]])
    assert Classification().values(outputs, torch.tensor([0, 1, 1])).tolist() == [1, 1, 0]


def test_sound_data_is_accepted(digits: Dataset):
    Classification().validate(digits)


def test_a_label_that_is_no_class_is_named_with_its_split(digits: Dataset):
    stray = Split({"image": torch.zeros(3, 1, 8, 8)}, torch.tensor([0, 12, 1]), normalizations={})
    with pytest.raises(
        DataError, match=r"1 labels of the validation split are out of range, first 12 at sample 1; .*0 to 9"
    ):
        Classification().validate(replace(digits, validation=stray))


def test_one_class_is_no_classification(digits: Dataset):
    with pytest.raises(DataError, match="needs two classes"):
        Classification().validate(replace(digits, classes=("only",)))


def test_an_unknown_task_is_told_with_the_known_ones():
    assert task_named("classification").metric.name == "accuracy"
    with pytest.raises(
        RecipeError, match=r"'segmentation' is not known; allowed: classification, regression, my_task\.py:make"
    ):
        task_named("segmentation")
