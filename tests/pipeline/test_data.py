"""Facts about data sources and the splits that come out of them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.pipeline.augmentation import Augmentation, Draws, View, augmented, augmented_on_device
from potstill.pipeline.data import Dataset, Split, sources, stratified
from potstill.pipeline.data_checks import Targets
from potstill.pipeline.errors import DataError
from potstill.pipeline.normalization import Normalization
from potstill.pipeline.sources.digits import Digits
from potstill.pipeline.sources.npz import Npz
from potstill.pipeline.sources.python import Python


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Digits(size=16, validation=180).load(Path())


def images(count: int, *, seed: int = 0, size: int = 8) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def labels(count: int, classes: int = 3) -> np.ndarray[Any, Any]:
    return np.arange(count) % classes


def npz_folder(folder: Path, **changes: Any) -> Path:
    """A sound data set of 30 and 12 images; a change such as ``train_x`` replaces an array, None drops it."""
    arrays = {
        "train_x": images(30),
        "train_y": labels(30),
        "test_x": images(12, seed=1),
        "test_y": labels(12),
    } | changes
    for split in ("train", "test"):
        kept: dict[str, Any] = {key: arrays[f"{split}_{key}"] for key in "xy" if arrays[f"{split}_{key}"] is not None}
        np.savez(folder / f"{split}.npz", **kept)
    return folder


def load(folder: Path, **settings: Any) -> Dataset:
    return Npz(path=Path(), **settings).load(folder)


def refused(folder: Path, words: str, **settings: Any) -> None:
    with pytest.raises(DataError, match=words):
        load(folder, **settings)


class TestDigits:
    def test_all_scans_are_in_exactly_one_split(self, digits: Dataset):
        assert digits.validation is not None
        assert (len(digits.train), len(digits.validation), len(digits.test)) == (1258, 180, 359)

    def test_the_scans_are_those_of_scikit_learn(self, digits: Dataset):
        from sklearn.datasets import load_digits

        scans, target = load_digits(return_X_y=True)
        pixels = torch.as_tensor(scans).reshape(-1, 1, 8, 8) * 255 / 16
        unscaled = Digits(size=8, normalize="none").load(Path())
        _, train = stratified(torch.as_tensor(target), 359)
        read = unscaled.train.batch(torch.arange(len(unscaled.train)))
        assert torch.equal(read.target, torch.as_tensor(target)[train])
        assert float((read.inputs["image"] * 255 - pixels[train]).abs().max()) <= 0.5001

    def test_every_split_holds_each_class_in_its_share(self, digits: Dataset):
        assert digits.validation is not None
        for split in (digits.train, digits.validation, digits.test):
            shares = torch.bincount(split.target, minlength=10) / len(split)
            assert float((shares - 0.1).abs().max()) < 0.015

    def test_training_pixels_have_zero_mean_and_unit_variance(self):
        train = Digits(size=16).load(Path()).train
        pixels = train.batch(torch.arange(len(train))).inputs["image"]
        assert float(pixels.mean()) == pytest.approx(0, abs=1e-4)
        assert float(pixels.std()) == pytest.approx(1, abs=1e-3)

    def test_a_second_load_is_bit_identical(self, digits: Dataset):
        again = Digits(size=16, validation=180).load(Path())
        assert again.fingerprint == digits.fingerprint
        assert torch.equal(again.example()["image"], digits.example()["image"])

    def test_every_setting_that_reaches_a_batch_is_in_the_fingerprint(self, digits: Dataset):
        changes: list[dict[str, Any]] = [
            {"size": 8},
            {"validation": 0},
            {"normalize": "none"},
            {"augment": ("flip",)},
            {"batch_size": 64},
        ]
        settings = {"size": 16, "validation": 180}
        others = {Digits(**{**settings, **change}).load(Path()).fingerprint for change in changes}
        assert len(others | {digits.fingerprint}) == 6

    def test_shapes_and_names_are_those_of_the_batches(self, digits: Dataset):
        assert digits.input_shapes == {"image": (1, 16, 16)}
        assert digits.classes == tuple("0123456789")
        assert digits.num_classes == 10
        assert digits.example(3)["image"].shape == (3, 1, 16, 16)
        assert digits.example()["image"].dtype == torch.float32


class TestSplits:
    def test_batches_in_order_cover_every_sample_once(self, digits: Dataset):
        batches = list(digits.test.batches(100))
        assert [len(batch.target) for batch in batches] == [100, 100, 100, 59]
        assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(359))
        assert torch.equal(torch.cat([batch.target for batch in batches]), digits.test.target)

    def test_a_batch_holds_the_samples_that_were_asked_for(self, digits: Dataset):
        index = torch.tensor([7, 3, 300])
        batch = digits.test.batch(index)
        whole = digits.test.batch(torch.arange(len(digits.test)))
        assert torch.equal(batch.inputs["image"], whole.inputs["image"][index])
        assert torch.equal(batch.target, whole.target[index])

    def test_stratified_picks_are_disjoint_and_complete(self):
        target = torch.arange(100) % 7
        held, rest = stratified(target, 21)
        assert sorted([*held.tolist(), *rest.tolist()]) == list(range(100))
        assert torch.bincount(target[held]).tolist() == [3] * 7

    def test_holding_out_more_than_half_is_refused(self, tmp_path: Path):
        refused(npz_folder(tmp_path), r"`validation: 20` would leave 10 of 30.*at most half", validation=20)


class TestAugmentation:
    def test_equal_views_give_equal_batches_and_others_differ(self, tmp_path: Path):
        train = load(npz_folder(tmp_path), augment=("random_crop", "flip")).train
        index = torch.arange(20)
        first, second, third = (train.batch(index, view=View(seed, 0)).inputs["image"] for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, third)

    def test_the_global_generator_is_neither_read_nor_advanced(self, tmp_path: Path):
        train = load(npz_folder(tmp_path), augment=("random_crop", "flip")).train
        before = torch.get_rng_state()
        train.batch(torch.arange(20), view=View(1, 0))
        assert torch.equal(before, torch.get_rng_state())

    def test_every_crop_is_a_window_of_the_zero_padded_image(self, tmp_path: Path):
        train = load(npz_folder(tmp_path), augment=("random_crop",), normalize="none").train
        index = torch.arange(20)
        plain = train.batch(index).inputs["image"]
        padded = torch.nn.functional.pad(plain, (4, 4, 4, 4))
        crops = train.batch(index, view=View(3, 0)).inputs["image"]
        for number in range(20):
            windows = [padded[number, :, row : row + 8, column : column + 8] for row in range(9) for column in range(9)]
            assert any(torch.equal(crops[number], window) for window in windows)

    def test_a_flip_mirrors_some_images_and_leaves_the_others(self, tmp_path: Path):
        train = load(npz_folder(tmp_path), augment=("flip",)).train
        plain = train.batch(torch.arange(30)).inputs["image"]
        flipped = train.batch(torch.arange(30), view=View(0, 0)).inputs["image"]
        mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(flipped, plain, strict=True)]
        same = [torch.equal(new, old) for new, old in zip(flipped, plain, strict=True)]
        assert all(one or other for one, other in zip(mirrored, same, strict=True))
        assert 5 < sum(mirrored) < 25

    def test_an_image_that_one_view_mirrors_is_not_mirrored_in_the_next(self, tmp_path: Path):
        train = load(npz_folder(tmp_path), augment=("flip",)).train
        looks = [train.batch(torch.arange(30), view=View(4, number)).inputs["image"] for number in range(4)]
        for before, after in pairwise(looks):
            assert torch.equal(after, before.flip(3))

    def test_without_a_view_nothing_is_changed(self, tmp_path: Path):
        npz_folder(tmp_path)
        augmented, plain = load(tmp_path, augment=("flip",)).train, load(tmp_path).train
        assert augmented.augmented
        assert not plain.augmented
        index = torch.arange(30)
        assert torch.equal(augmented.batch(index).inputs["image"], plain.batch(index).inputs["image"])

    def test_views_of_nothing_are_refused(self, tmp_path: Path):
        refused(npz_folder(tmp_path), r"`views`.*nothing is augmented", views=4)

    def test_inputs_that_are_no_images_cannot_be_augmented(self, tmp_path: Path):
        rows = np.random.default_rng(0).normal(size=(30, 5))
        refused(
            npz_folder(tmp_path, train_x=rows, test_x=rows[:12]), "no input is one.*leave `augment`", augment=("flip",)
        )


class TestNpz:
    def test_channels_last_and_channels_first_files_give_the_same_images(self, tmp_path: Path):
        (tmp_path / "last").mkdir()
        (tmp_path / "first").mkdir()
        last = load(npz_folder(tmp_path / "last"))
        turned = {
            f"{split}_x": images(count, seed=seed).transpose(0, 3, 1, 2)
            for split, count, seed in (("train", 30, 0), ("test", 12, 1))
        }
        first = load(npz_folder(tmp_path / "first", **turned))
        assert last.input_shapes == {"image": (3, 8, 8)}
        assert first.fingerprint == last.fingerprint

    def test_an_image_without_channel_axis_has_one_channel(self, tmp_path: Path):
        data = load(npz_folder(tmp_path, train_x=images(30)[..., 0], test_x=images(12)[..., 0]))
        assert data.input_shapes == {"image": (1, 8, 8)}

    def test_imagenet_constants_are_applied_to_pixels_between_0_and_1(self, tmp_path: Path):
        data = load(npz_folder(tmp_path), normalize="imagenet")
        raw = torch.as_tensor(images(12, seed=1)).permute(0, 3, 1, 2)[:2] / 255
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        expected = (raw - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
        assert torch.allclose(data.example()["image"], expected, atol=1e-6)

    def test_named_classes_may_lack_samples(self, tmp_path: Path):
        data = load(npz_folder(tmp_path), classes=("a", "b", "c", "d"))
        assert data.num_classes == 4
        assert data.description.endswith("4 classes (none of d in train)")

    def test_a_changed_pixel_changes_the_fingerprint(self, tmp_path: Path):
        before = load(npz_folder(tmp_path)).fingerprint
        changed = images(12, seed=1)
        changed[5, 2, 2, 0] ^= 1
        assert load(npz_folder(tmp_path, test_x=changed)).fingerprint != before


class TestBadFiles:
    def test_missing_folder(self, tmp_path: Path):
        with pytest.raises(DataError, match=r"nowhere: no such folder.*data\.path"):
            Npz(path=Path("nowhere")).load(tmp_path)

    def test_missing_file(self, tmp_path: Path):
        npz_folder(tmp_path)
        (tmp_path / "test.npz").unlink()
        refused(tmp_path, r"test\.npz: no such file; write it with numpy\.savez")

    def test_missing_array(self, tmp_path: Path):
        refused(npz_folder(tmp_path, train_y=None), r"train\.npz has no array 'y', only x; write it")

    @pytest.mark.parametrize("content", [b"", b"not a zip file at all", b"PK\x03\x04 broken"])
    def test_file_that_is_no_npz(self, tmp_path: Path, content: bytes):
        npz_folder(tmp_path)
        (tmp_path / "train.npz").write_bytes(content)
        refused(tmp_path, r"train\.npz is not a readable \.npz file.*copy it again")

    def test_truncated_file(self, tmp_path: Path):
        whole = (npz_folder(tmp_path) / "train.npz").read_bytes()
        (tmp_path / "train.npz").write_bytes(whole[: len(whole) // 2])
        refused(tmp_path, r"train\.npz.*copy")

    def test_bit_flip_in_the_pixels(self, tmp_path: Path):
        content = bytearray((npz_folder(tmp_path) / "train.npz").read_bytes())
        content[1000] ^= 255
        (tmp_path / "train.npz").write_bytes(content)
        refused(tmp_path, r"train\.npz.*copy")

    def test_images_of_unequal_size(self, tmp_path: Path):
        unequal = np.empty(30, object)
        unequal[:] = [np.zeros((8 + number % 2, 8, 3), np.uint8) for number in range(30)]
        refused(
            npz_folder(tmp_path, train_x=unequal),
            r"train\.npz: x is an array of Python objects.*unequal size.*resizing",
        )

    def test_axes_that_do_not_tell_the_channels(self, tmp_path: Path):
        npz_folder(tmp_path, train_x=np.zeros((30, 3, 8, 3), np.uint8), test_x=np.zeros((12, 3, 8, 3), np.uint8))
        refused(tmp_path, "does not tell where the channels are; set `layout")
        assert load(tmp_path, layout="nhwc").input_shapes == {"image": (3, 3, 8)}


class TestBadValues:
    def test_labels_out_of_range_in_test(self, tmp_path: Path):
        wrong = labels(12)
        wrong[4] = 3
        refused(
            npz_folder(tmp_path, test_y=wrong), r"test\.npz: 1 labels are out of range, first 3 at sample 4.*0 to 2"
        )

    def test_negative_labels(self, tmp_path: Path):
        wrong = labels(30)
        wrong[[2, 9]] = -1
        refused(
            npz_folder(tmp_path, train_y=wrong), r"train\.npz: 2 labels are out of range, first -1 at sample 2.*0 to 2"
        )

    def test_a_stray_high_label_in_train(self, tmp_path: Path):
        wrong = labels(30)
        wrong[7] = 255
        refused(npz_folder(tmp_path, train_y=wrong), r"go up to 255, but only 4 occur.*no sample has the label 3")

    def test_labels_that_begin_at_1(self, tmp_path: Path):
        refused(
            npz_folder(tmp_path, train_y=labels(30) + 1),
            r"out of range.*no sample has the label 0; number.*from 0 to 2",
        )

    def test_fractional_labels(self, tmp_path: Path):
        refused(npz_folder(tmp_path, train_y=labels(30) + 0.5), r"labels are float64 values such as 0\.5.*astype")

    def test_whole_labels_stored_as_fractions(self, tmp_path: Path):
        refused(npz_folder(tmp_path, train_y=labels(30) * 1.0), r"labels are float64; they must be whole.*astype")

    def test_one_hot_labels(self, tmp_path: Path):
        refused(npz_folder(tmp_path, train_y=np.eye(3, dtype=np.int64)[labels(30)]), r"shape \(30, 3\).*argmax\(1\)")

    def test_text_labels(self, tmp_path: Path):
        refused(npz_folder(tmp_path, train_y=np.array(["cat"] * 30)), r"labels holds <U3 values, not numbers")

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_values_that_are_not_finite(self, tmp_path: Path, bad: float):
        broken = images(30).astype(np.float32)
        broken[11, 0, 0, 0] = broken[11, 1, 1, 1] = broken[20, 0, 0, 0] = bad
        refused(
            npz_folder(tmp_path, train_x=broken, test_x=images(12).astype(np.float32)),
            r"train\.npz: image holds 3 values that are NaN or infinite, in 2 of 30 samples, first in sample 11",
        )

    def test_more_images_than_labels(self, tmp_path: Path):
        refused(npz_folder(tmp_path, train_y=labels(29)), r"image holds 30 samples for 29 labels")

    def test_empty_split(self, tmp_path: Path):
        refused(npz_folder(tmp_path, test_x=images(0), test_y=labels(0)), r"test\.npz holds no samples")

    def test_one_class_only(self, tmp_path: Path):
        refused(npz_folder(tmp_path, train_y=np.ones(30, np.int64)), r"all 30 labels are 1; a classifier needs two")

    def test_train_and_test_of_different_shapes(self, tmp_path: Path):
        refused(npz_folder(tmp_path, test_x=images(12, size=9)), r"test\.npz: image has .*\(3, 9, 9\).*\(3, 8, 8\)")

    def test_train_and_test_of_different_types(self, tmp_path: Path):
        refused(npz_folder(tmp_path, test_x=images(12) / 255), r"image is float32, but in .*train\.npz it is uint8")

    def test_imagenet_constants_for_grey_images(self, tmp_path: Path):
        grey = npz_folder(tmp_path, train_x=images(30)[..., 0], test_x=images(12)[..., 0])
        refused(
            grey, "`normalize: imagenet` is for images of 3 channels; use `normalize: dataset`", normalize="imagenet"
        )

    def test_imagenet_constants_for_floats_beyond_0_to_1(self, tmp_path: Path):
        wide = npz_folder(tmp_path, train_x=images(30) * 1.0, test_x=images(12) * 1.0)
        refused(wide, "from 0 to 255, and `normalize: imagenet` is for pixels from 0 to 1", normalize="imagenet")


class TestPython:
    def write(self, folder: Path, result: str) -> Python:
        (folder / "my_data.py").write_text(
            "import numpy as np\n"
            "x = np.random.default_rng(0).normal(size=(12, 1, 8, 8))\n"
            "y = np.arange(12) % 3\n"
            f"def make():\n    return {result}\n"
        )
        return Python(source="my_data.py:make")

    def test_a_function_of_the_user_is_a_source(self, tmp_path: Path):
        data = self.write(tmp_path, "dict(train=(x, y), test=(x, y), classes=['a', 'b', 'c'])").load(tmp_path)
        assert data.classes == ("a", "b", "c")
        assert data.input_shapes == {"image": (1, 8, 8)}
        assert data.validation is None

    def test_its_values_are_kept_unless_it_asks_otherwise(self, tmp_path: Path):
        kept = self.write(tmp_path, "dict(train=(x, y), test=(x, y))").load(tmp_path)
        expected = np.random.default_rng(0).normal(size=(12, 1, 8, 8)).astype(np.float32)
        assert np.array_equal(kept.example(12)["image"].numpy(), expected)

    def test_its_own_validation_split_is_used_and_no_second_one_made(self, tmp_path: Path):
        source = self.write(tmp_path, "dict(train=(x, y), test=(x, y), validation=(x[:6], y[:6]))")
        data = source.load(tmp_path)
        assert data.validation is not None
        assert len(data.validation) == 6
        with pytest.raises(DataError, match="brings its own validation split; leave out `validation`"):
            source.model_copy(update={"validation": 3}).load(tmp_path)

    def test_several_inputs_keep_their_names_and_whole_numbers(self, tmp_path: Path):
        tokens = "{'tokens': np.arange(60).reshape(12, 5), 'mask': np.ones((12, 5), bool)}"
        data = self.write(tmp_path, f"dict(train=({tokens}, y), test=({tokens}, y))").load(tmp_path)
        assert data.input_shapes == {"tokens": (5,), "mask": (5,)}
        assert data.example()["tokens"].dtype == torch.int64

    @pytest.mark.parametrize(
        ("result", "words"),
        [
            ("None", "returned None; it must return dict"),
            ("dict(train=(x, y))", "lacks test"),
            ("dict(train=(x, y), test=None)", "lacks test"),
            ("dict(train=(x, y), test=(x, y), tets=1)", "unknown entry tets"),
            ("dict(train=x, test=(x, y))", "train is a value of type ndarray; it must be a pair"),
            ("dict(train=(x, y), test=({}, y))", "holds no inputs"),
            ("dict(train=(x, y), test=({'other': x}, y))", "lacks the input"),
            ("dict(train=(x, y), test=(x, y), classes='abc')", "`classes` is a value of type str"),
            ("dict(train=(x, y), test=(x, y), classes=['a', 'a', 'b'])", "class names must differ"),
            ("dict(train=(x, y), test=(x, y), classes=['a', 'b'])", "first 2 at sample 2; with 2 classes"),
            (
                "dict(train=([x[0], x[0][:, 1:]] * 6, y), test=(x, y))",
                r"sample 0 is \(1, 8, 8\), sample 1 is \(1, 7, 8\)",
            ),
            ("dict(train=(x.astype(object), y), test=(x, y))", "holds objects, not numbers"),
            ("dict(train=(np.zeros((12, 8, 8, 3), np.uint8), y), test=(x, y))", r"looks like channels last.*transpose"),
        ],
    )
    def test_a_result_that_cannot_be_used_is_refused(self, tmp_path: Path, result: str, words: str):
        with pytest.raises(DataError, match=words):
            self.write(tmp_path, result).load(tmp_path)

    def test_an_error_inside_names_the_users_line(self, tmp_path: Path):
        source = self.write(tmp_path, "dict(train=np.load('gone.npy'))")
        with pytest.raises(DataError, match=r"my_data\.py:5, in make: FileNotFoundError: .*gone\.npy"):
            source.load(tmp_path)


def test_every_source_is_found_by_its_modules_name():
    assert list(sources()) == ["cifar", "digits", "huggingface", "image_folder", "npz", "python", "sound", "text"]
    assert sources()["npz"] is Npz


def floats(count: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(count).normal(size=(count, *shape)).astype(np.float32)


class TestNumbers:
    def load(self, folder: Path, train: Any, test: Any, targets: Targets = "numbers", **settings: Any) -> Dataset:
        return Npz(path=Path(), **settings).load(npz_folder(folder, train_y=train, test_y=test), targets)

    @pytest.mark.parametrize("shape", [(3,), (1, 8, 8), (2, 4, 4)])
    def test_of_any_shape_are_what_a_model_must_give(self, shape: tuple[int, ...], tmp_path: Path):
        data = self.load(tmp_path, floats(30, *shape).astype(np.float64), floats(12, *shape), validation=5)
        assert (data.output_shape, data.num_outputs, data.classes) == (shape, shape[0], ())
        assert data.train.batch(torch.arange(4)).target.shape == (4, *shape)
        assert data.train.target.dtype == torch.float32
        assert data.description.endswith(f"targets {'x'.join(map(str, shape))}")

    def test_one_a_sample_are_what_a_layer_of_one_output_gives(self, tmp_path: Path):
        data = self.load(tmp_path, floats(30), floats(12))
        assert (data.output_shape, data.num_outputs) == ((1,), 1)

    def test_held_out_samples_have_small_and_large_numbers_alike(self, tmp_path: Path):
        data = self.load(tmp_path, np.arange(30.0), floats(12), validation=10)
        assert data.validation is not None
        held = sorted(data.validation.target.flatten().tolist())
        assert all(3 * number <= value < 3 * number + 3 for number, value in enumerate(held))

    @pytest.mark.parametrize(
        ("train", "test", "words"),
        [
            (labels(30), labels(12), r"targets are int64; a regression takes fractions: use y\.astype.'float32'., or"),
            (floats(30, 2), floats(12, 3), r"targets are float32 of shape \(3,\) a sample, but in .* of shape \(2,\)"),
            (np.full(30, np.nan), floats(12), "the targets holds 30 values that are NaN"),
            (floats(29), floats(12), "30 samples for 29 targets; there must be one target a sample"),
            (floats(30, 0), floats(12, 0), r"the targets have the shape \(30, 0\); there must be one array of numbers"),
        ],
    )
    def test_that_cannot_be_learnt_are_refused(self, train: Any, test: Any, words: str, tmp_path: Path):
        with pytest.raises(DataError, match=words):
            self.load(tmp_path, train, test)

    def test_are_no_classes_and_a_classification_says_the_way_out(self, tmp_path: Path):
        with pytest.raises(DataError, match=r"labels are float32 .*or `task: regression` where they are what"):
            self.load(tmp_path, floats(30), floats(12), "classes")
        with pytest.raises(DataError, match="a regression has no classes; leave `classes` out"):
            self.load(tmp_path, floats(30), floats(12), classes=("a", "b"))

    def test_one_test_sample_says_nothing_of_chance(self, tmp_path: Path):
        npz_folder(tmp_path, train_y=floats(30), test_x=images(1), test_y=floats(1))
        with pytest.raises(DataError, match=r"test\.npz holds one sample; two are needed"):
            Npz(path=Path()).load(tmp_path, "numbers")

    def test_that_are_maps_do_not_move_with_augmented_images(self, tmp_path: Path):
        with pytest.raises(DataError, match=r"`augment` moves the images, but not the targets, .*\(1, 8, 8\)"):
            self.load(tmp_path, floats(30, 1, 8, 8), floats(12, 1, 8, 8), augment=("flip",))

    def test_of_the_users_own_task_are_classes_where_labels_count_them(self, tmp_path: Path):
        assert self.load(tmp_path, labels(30), labels(12), "any").num_outputs == 3
        assert self.load(tmp_path, labels(30) * 2, labels(12) * 2, "any").num_outputs == 0
        assert self.load(tmp_path, floats(30, 4), floats(12, 4), "any").num_outputs == 4
        whole = self.load(tmp_path, np.ones((30, 8, 8), int), np.ones((12, 8, 8), int), "any", classes=("a", "b"))
        assert (whole.num_outputs, whole.output_shape, whole.train.target.dtype) == (2, None, torch.int64)


class TestSettledSplit:
    def split(self) -> Split:
        images = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        normalization = Normalization((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
        return Split(
            {"image": images},
            torch.arange(40) % 4,
            normalizations={"image": normalization},
            augment=("random_crop", "flip"),
        )

    def test_makes_batches_on_its_device(self) -> None:
        split = self.split()
        split.settle(torch.device("meta"))
        batch = split.batch(torch.arange(8), view=View(3, 0))
        assert batch.inputs["image"].device.type == batch.target.device.type == "meta"
        assert batch.inputs["image"].shape == (8, 3, 12, 12)
        assert batch.inputs["image"].dtype == torch.float32
        assert batch.index.device.type == "cpu"

    @pytest.mark.parametrize("kinds", [("random_crop",), ("flip",), ("random_crop", "flip")])
    def test_changes_images_there_as_on_the_cpu(self, kinds: tuple[Augmentation, ...]) -> None:
        images = self.split().raw["image"]
        draws = Draws.of(View(3, 0), len(images), kinds)
        assert torch.equal(augmented_on_device(images, kinds, draws), augmented({"x": images}, kinds, draws)["x"])
