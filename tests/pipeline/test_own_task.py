"""Facts about tasks that users write."""

from pathlib import Path

import pytest
import torch

from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import TaskError
from potstill.pipeline.own_task import own_task
from potstill.pipeline.task import Task, task_named

TASK = """
class Absolute:
    metric = "mean absolute error"
    higher_is_better = False

    def loss(self, outputs, target):
        return (outputs - target).abs().mean()

    def values(self, outputs, target):
        return (outputs - target).abs().flatten(1).mean(1)

    def validate(self, dataset):
        if dataset.classes:
            raise ValueError("takes numbers, not classes")


def make():
    return Absolute()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_task.py").write_text(TASK)
    return tmp_path


def changed(folder: Path, old: str, new: str) -> Task:
    assert old in TASK
    (folder / "my_task.py").write_text(TASK.replace(old, new))
    return own_task("my_task.py:make", folder)


class TestASoundOne:
    def test_is_judged_as_it_says(self, folder: Path) -> None:
        task = task_named("my_task.py:make", folder)
        outputs, target = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [5.0]])
        assert float(task.loss(outputs.bfloat16(), target)) == 2
        assert task.values(outputs, target).tolist() == [1, 3]
        assert task.targets == "any"
        assert (task.metric.name, task.metric.higher_is_better, task.metric.kind) == (
            "mean absolute error",
            False,
            "mean",
        )

    def test_of_another_source_is_another_task(self, folder: Path) -> None:
        before = task_named("my_task.py:make", folder).identity
        assert changed(folder, ".abs().mean()", ".square().mean()").identity != before

    def test_has_its_say_on_the_data(self, folder: Path, data: Dataset) -> None:
        with pytest.raises(TaskError, match=r"my_task\.py:\d+, in validate: ValueError: takes numbers, not classes"):
            own_task("my_task.py:make", folder).validate(data)
        changed(folder, "    def validate", "    def unused").validate(data)


class TestRefusals:
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("return Absolute()", "return 3", "a value of type int, which lacks `metric`, `higher_is_better`, `loss`"),
            ("def values", "def value", r"lacks `values`; return an object with `metric`.*`values\(outputs, target\)`"),
            ('"mean absolute error"', '""', "`metric` is '', and must be a name of at most 40 letters"),
            ("higher_is_better = False", "higher_is_better = 'no'", "`higher_is_better` is 'no', and must be True or"),
            ("def make():", "Absolute.loss = 3\ndef make():", "`loss` is a value of type int, and must be a method"),
            ("return Absolute()", "return Absolut()", r"my_task\.py:\d+, in make: NameError"),
        ],
    )
    def test_say_what_is_wrong_with_the_object(self, old: str, new: str, message: str, folder: Path) -> None:
        with pytest.raises(TaskError, match=message):
            changed(folder, old, new)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (
                ".abs().mean()",
                ".abs()",
                r"`loss` returned a tensor of shape \(2, 1\); it must be of shape \(\), one nu",
            ),
            ("return (outputs - target).abs().mean()", "return 1.0", "`loss` returned a value of type float"),
            (".flatten(1).mean(1)", ".mean()", r"`values` returned a tensor of shape \(\); it must be of shape \(2,\)"),
            (".flatten(1).mean(1)", ".flatten(1).mean(1) / 0", "`values` returned NaN or infinity"),
            ("(outputs - target).abs().flatten", "(outputs - targets).abs().flatten", r"in values: NameError"),
        ],
    )
    def test_say_what_is_wrong_with_what_its_methods_return(
        self, old: str, new: str, message: str, folder: Path
    ) -> None:
        task = changed(folder, old, new)
        method = task.loss if "`loss`" in message else task.values
        with pytest.raises(TaskError, match=message):
            method(torch.ones(2, 1), torch.zeros(2, 1))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(TaskError, match="there is no file"):
            task_named("my_task.py:make", tmp_path)
