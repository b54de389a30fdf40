"""Facts about what a model is for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from potstill.pipeline.data import Dataset, Split
from potstill.pipeline.errors import DataError, ModelError, RecipeError
from potstill.pipeline.sources.digits import Digits
from potstill.pipeline.task import Classification, Regression, task_named


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


class TestRegression:
    def test_the_loss_is_the_mean_squared_error_over_all_numbers(self):
        outputs, target = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
        assert float(Regression().loss(outputs, target)) == pytest.approx((4 + 9) / 4)

    def test_the_metric_is_the_root_of_the_mean_of_the_samples_own_errors(self):
        outputs, target = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
        values = Regression().values(outputs, target)
        assert values.tolist() == [1, 9]
        assert Regression().metric.of(float(values.mean())) == pytest.approx(5**0.5)
        assert Regression().metric.improves(-0.1)
        assert not Regression().metric.improves(0.1)
        assert not Regression().metric.improves(0)

    def test_outputs_are_never_broadcast_against_targets(self):
        for method in (Regression().loss, Regression().values):
            with pytest.raises(ModelError, match="outputs of shape 8 for targets of shape 8 x 1, batch first"):
                method(torch.zeros(8), torch.zeros(8, 1))

    def test_targets_that_are_all_one_number_are_nothing_to_learn(self, digits: Dataset):
        constant = Split({"image": torch.zeros(3, 1, 8, 8)}, torch.full((3, 1), 2.5), normalizations={})
        with pytest.raises(DataError, match=r"all targets of the train split are 2\.5"):
            Regression().validate(replace(digits, train=constant, targets="numbers"))
