"""Facts about inputs: what does not fit is named, and more samples than a profile takes are split."""

import numpy as np
import pytest

from potstill.export.engine import Array
from potstill.export.tensorrt.inputs import batches, input_problem, largest_batch
from potstill.export.tensorrt.manifest import TensorFacts

IMAGE = {"image": TensorFacts(shape=(None, 3), dtype="float32", least=(1, 3), most=(8, 3))}
TEXT = {
    "tokens": TensorFacts(shape=(None, None), dtype="int64", least=(1, 4), most=(8, 16)),
    "table": TensorFacts(shape=(2, 2), dtype="float32"),
}


def image(*shape: int, dtype: type = np.float32) -> dict[str, Array]:
    return {"image": np.zeros(shape, dtype)}


@pytest.mark.parametrize("count", [1, 8, 9, 100])
def test_any_number_of_samples_fits(count: int) -> None:
    assert input_problem(IMAGE, image(count, 3)) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"picture": np.zeros((1, 3), np.float32)}, "takes the inputs image; given were picture"),
        ({}, "given were none"),
        (image(1, 4), r"takes float32 (any, 3) for the input image; given was float32 (1, 4)"),
        (image(1, 3, 1), "given was float32 (1, 3, 1)"),
        (image(1, 3, dtype=np.float64), "given was float64 (1, 3)"),
        (image(0, 3), "which holds nothing"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Array], message: str) -> None:
    assert message in str(input_problem(IMAGE, given))


@pytest.mark.parametrize(("length", "fits"), [(4, True), (16, True), (3, False), (17, False)])
def test_another_dimension_must_be_within_its_range(length: int, fits: bool) -> None:
    given: dict[str, Array] = {"tokens": np.zeros((100, length), np.int64), "table": np.zeros((2, 2), np.float32)}
    found = input_problem(TEXT, given)
    assert (found is None) if fits else (found is not None and "sizes from 4 to 16 in dimension 1" in found)


def test_inputs_must_have_as_many_samples_each() -> None:
    two = {"a": IMAGE["image"], "b": IMAGE["image"]}
    given: dict[str, Array] = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((3, 3), np.float32)}
    assert "given were 2, 3" in str(input_problem(two, given))


def test_parts_are_nearly_equal_hold_every_sample_once_and_share_what_is_no_sample() -> None:
    tokens = np.arange(19 * 4).reshape(19, 4)
    table = np.ones((2, 2), np.float32)
    parts = list(batches(TEXT, {"tokens": tokens, "table": table}))
    assert [len(part["tokens"]) for part in parts] == [6, 6, 7]
    assert np.array_equal(np.concatenate([part["tokens"] for part in parts]), tokens)
    assert all(part["table"] is table for part in parts)


def test_an_engine_of_fixed_shape_is_given_everything_at_once() -> None:
    fixed = {"image": TensorFacts(shape=(2, 3), dtype="float32")}
    assert largest_batch(fixed) is None
    assert len(list(batches(fixed, image(2, 3)))) == 1
