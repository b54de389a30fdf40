from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import DataError
from potstill.pipeline.sources.text import TextSource
from tests.support.small_texts import texts, write, write_splits

pytest.importorskip("tokenizers", reason="needs the text extra")


def load(folder: Path, **settings: Any) -> Dataset:
    return TextSource(path=folder, **{"vocabulary": 120, "max_length": 20, **settings}).load(Path())


class TestForms:
    @pytest.mark.parametrize("ending", [".npz", ".tsv", ".csv", ".jsonl"])
    def test_give_the_same_data(self, tmp_path: Path, ending: str) -> None:
        data = load(write_splits(tmp_path / "one", ending=ending))
        assert data.fingerprint == load(write_splits(tmp_path / "two", ending=".tsv")).fingerprint
        assert data.input_shapes == {"input_ids": (20,), "attention_mask": (20,)}

    def test_of_named_classes_number_them_alphabetically_or_as_told(self, tmp_path: Path) -> None:
        lines, labels = texts(64, 0)
        named = [("good" if label else "worse") for label in labels]
        for name in ("train", "test"):
            write(tmp_path / f"{name}.csv", lines, named)
        told = load(tmp_path, classes=("worse", "good"))
        assert (load(tmp_path).classes, told.classes) == (("good", "worse"), ("worse", "good"))
        assert told.test.target.tolist() == labels

    def test_may_have_columns_of_other_names(self, tmp_path: Path) -> None:
        for name in ("train", "dev"):
            (tmp_path / f"{name}.tsv").write_text('sentence\tclass\na "good film\t1\na bad film\t0\n')
        data = load(tmp_path, test="dev", text="sentence", label="class")
        assert data.text is not None
        assert data.text.test == ('a "good film', "a bad film")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(write_splits(tmp_path_factory.mktemp("texts")), validation=40)


class TestDataset:
    def test_cuts_each_batch_to_its_longest_text(self, data: Dataset) -> None:
        for batch in data.test.batches(7):
            longest = int(batch.inputs["attention_mask"].sum(1).max())
            assert {tensor.shape[1] for tensor in batch.inputs.values()} == {longest}

    def test_orders_training_texts_by_length(self, data: Dataset) -> None:
        lengths = data.train.lengths
        assert lengths is not None
        order = data.train.order(16, torch.Generator().manual_seed(0))
        batches = lengths[order[: len(order) // 16 * 16]].view(-1, 16)
        assert int((batches.max(1).values - batches.min(1).values).max()) <= 4

    def test_is_timed_on_texts_of_the_median_length(self, data: Dataset) -> None:
        assert data.test.lengths is not None
        assert data.timed(1)["input_ids"].shape == (1, int(data.test.lengths.median()))

    def test_makes_its_tokenizer_without_the_texts_of_validation(self, tmp_path: Path) -> None:
        lines, labels = texts(64, 0)
        # A letter of its own in each text: a word piece more for each text that the tokenizer was made of.
        strange = [f"{line} {chr(0x4E00 + number)}" for number, line in enumerate(lines)]
        write(tmp_path / "train.tsv", strange, labels)
        write(tmp_path / "test.tsv", lines, labels)
        whole, split = load(tmp_path, vocabulary=8000), load(tmp_path, vocabulary=8000, validation=20)
        assert whole.vocabulary - split.vocabulary >= 20

    def test_hangs_on_the_tokenizer_and_the_split(self, tmp_path: Path) -> None:
        folder = write_splits(tmp_path)
        prints = {load(folder, **each).fingerprint for each in ({}, {"vocabulary": 90}, {"validation": 20})}
        assert len(prints) == 3


class TestMistakes:
    def refused(self, folder: Path, **settings: Any) -> str:
        with pytest.raises(DataError) as error:
            load(folder, **settings)
        return str(error.value)

    def test_in_files_are_told_with_their_place(self, tmp_path: Path) -> None:
        folder = write_splits(tmp_path / "data")
        assert "has no file 'dev' of texts" in self.refused(folder, test="dev")
        assert "it has text, label" in self.refused(folder, text="sentence")
        write(folder / "train.csv", *texts(8, 0))
        assert "has train.tsv and train.csv; name one of them" in self.refused(folder)
        assert "no such folder" in self.refused(tmp_path / "nothing")

    def test_in_lines_are_told_with_their_number(self, tmp_path: Path) -> None:
        folder = write_splits(tmp_path)
        (folder / "train.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b"}\n')
        assert "line 2: has no 'label'" in self.refused(folder, train="train.jsonl")
        (folder / "train.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", \n')
        assert "line 2: is no JSON" in self.refused(folder, train="train.jsonl")
        (folder / "train.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 0.5}\n')
        assert "a label is 0.5" in self.refused(folder, train="train.jsonl")
        (folder / "train.tsv").write_bytes(b"text\tlabel\ncaf\xe9\t1\n")
        assert "is not written in UTF-8" in self.refused(folder, train="train.tsv")
        (folder / "train.tsv").write_text("text\tlabel\na\tgood\n \tbad\n")
        assert "text 1 (from 0) is empty" in self.refused(folder, train="train.tsv")

    def test_in_arrays_are_told(self, tmp_path: Path) -> None:
        folder = write_splits(tmp_path, ending=".npz")
        np.savez(folder / "train.npz", x=np.zeros(3))
        assert "has no array 'text', only x" in self.refused(folder)
        np.savez(folder / "train.npz", text=np.frombuffer(b"a\nb\nc", np.uint8), y=np.array([0, 1]))
        assert "holds 3 texts and 2 labels" in self.refused(folder)
        (folder / "train.npz").write_bytes(b"no archive")
        assert "is not a readable .npz file of texts" in self.refused(folder)

    def test_in_class_names_are_told(self, tmp_path: Path) -> None:
        folder = write_splits(tmp_path)
        write(folder / "test.tsv", ["a film"], ["splendid"])
        told = self.refused(folder, classes=("bad", "good"))
        assert "'splendid', which is no class; the classes are bad, good" in told

    def test_in_the_recipe_are_told(self, tmp_path: Path) -> None:
        folder = write_splits(tmp_path)
        with pytest.raises(ValidationError, match="at most 0 items"):
            load(folder, augment=("flip",))
        assert "is more than half of the" in self.refused(folder, validation=319)
