"""Facts about data sets that the package `datasets` opens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import DataError
from potstill.pipeline.sources.huggingface import HuggingFace
from potstill.pipeline.sources.image_folder import ImageFolder
from tests.support.pictures import CLASSES, picture_folder

datasets: Any = pytest.importorskip("datasets", reason="the package datasets is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")

# What pandas, pyarrow and others warn of is none of ours.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The package's cache apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_folder(tmp_path_factory.mktemp("folder") / "pets", "train", "test")


@pytest.fixture(scope="module")
def tables(pets: Path) -> Any:
    """The same images in the order of an image folder, with the bytes in the table."""
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(CLASSES))})

    def table(split: str) -> Any:
        files = sorted((pets / split).rglob("*.*g"))
        pictures = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        kinds = [CLASSES.index(file.parent.name) for file in files]
        return datasets.Dataset.from_dict({"picture": pictures, "kind": kinds}, features=features)

    return datasets.DatasetDict({"train": table("train"), "test": table("test")})


@pytest.fixture(scope="module")
def saved(tables: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pets"
    tables.save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="module")
def parquet(tables: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    for split, table in tables.items():
        table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder


def load(path: Path, **settings: Any) -> Dataset:
    settings = {"size": 16, "workers": 1, **settings}
    return HuggingFace(path=path, **settings).load(Path("/nowhere"))


def refused(path: Path, words: str, **settings: Any) -> None:
    with pytest.raises(DataError, match=words):
        HuggingFace(path=path, **settings).load(Path("/nowhere"))


class TestImages:
    def test_are_the_same_from_every_kind_of_file(self, pets: Path, saved: Path, parquet: Path) -> None:
        wanted = ImageFolder(path=pets, size=16, workers=1).load(Path("/nowhere"))
        for path in (saved, parquet, pets):
            found = load(path)
            assert found.classes == CLASSES
            assert found.fingerprint == wanted.fingerprint

    def test_of_one_file_are_divided_by_a_share(self, parquet: Path) -> None:
        data = load(parquet / "train-00000-of-00001.parquet", test=0.25, validation=3)
        assert data.validation is not None
        assert [len(split) for split in (data.train, data.validation, data.test)] == [15, 3, 6]

    def test_that_are_damaged_are_named_by_their_rows(self, tables: Any, tmp_path: Path) -> None:
        def damaged(row: dict[str, Any], number: int) -> dict[str, Any]:
            return {"picture": {"bytes": b"no image", "path": None} if number in (2, 5) else row["picture"]}

        encoded = tables["train"].cast_column("picture", datasets.Image(decode=False))
        torn = encoded.map(damaged, with_indices=True).cast_column("picture", datasets.Image())
        datasets.DatasetDict({"train": torn, "test": tables["test"]}).save_to_disk(str(tmp_path / "torn"))
        words = r"2 of 48 images cannot be decoded:\n  train\[2\]: is no image .*\n  train\[5\]: is no image"
        refused(tmp_path / "torn", words, size=16, workers=1)


class TestTexts:
    def test_become_tokens_and_a_mask(self, tmp_path: Path) -> None:
        tokenizer_file = tokenizer(tmp_path)
        data = HuggingFace(path=texts(tmp_path), tokenizer=tokenizer_file, max_length=4, test="validation").load(
            tmp_path
        )
        assert data.classes == ("bad", "good")
        assert set(data.input_shapes) == {"input_ids", "attention_mask"}
        first = data.train.batch(torch.tensor([0, 1])).inputs
        assert first["input_ids"].tolist() == [[1, 2, 0, 0], [1, 3, 1, 3]]
        assert first["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
        assert data.train.target[:2].tolist() == [1, 0]

    def test_need_a_tokenizer_and_none_of_the_settings_of_images(self, tmp_path: Path) -> None:
        path = texts(tmp_path)
        refused(path, "need a `tokenizer`, the path of a tokenizer.json", test="validation")
        refused(path, "size is for images, and texts are read", size=8, test="validation")
        refused(path, r"gone.json: no such file", tokenizer=tmp_path / "gone.json", test="validation")


def texts(folder: Path) -> Path:
    """A folder of two files of JSON lines, whose labels are names."""
    rows = [("film fine", "good"), ("film dull film dull film", "bad")]
    for split in ("train", "validation"):
        lines = [f'{{"sentence": "{text}", "label": "{label}"}}\n' for text, label in rows * 4]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def tokenizer(folder: Path) -> Path:
    package: Any = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    words = {"[PAD]": 0, "film": 1, "fine": 2, "dull": 3, "[UNK]": 4}
    made = package.Tokenizer(package.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = package.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


class TestWrongNames:
    def test_of_files_splits_and_columns_say_what_there_is(self, saved: Path, tmp_path: Path) -> None:
        refused(tmp_path / "gone", "no such file or folder; `data.path`")
        (tmp_path / "table.xls").write_text("")
        refused(tmp_path / "table.xls", r"is no file that a data set is read from; they end in .parquet")
        refused(saved, "has no split dev, only train, test; choose with `train` and `test`", test="dev")
        refused(saved, "has a split test, and `test: 0.2` asks for a share of train", test=0.2)
        refused(
            saved, r"`label: kinds` is no column; the columns are picture \(Image\), kind \(ClassLabel\)", label="kinds"
        )
        refused(saved, "column 'kind' holds no images, but ClassLabel", image="kind")
        refused(saved, "max_length is for texts, and images are read", max_length=9)

    def test_of_a_folder_that_is_no_data_set_is_one_error(self, tmp_path: Path) -> None:
        refused(tmp_path, r"cannot be opened \(.*\); is it a data set that the package datasets reads\?")

    def test_of_the_hub_without_a_network_is_one_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        words = r"^nobody/nothing cannot be opened \(\w+: .*is the name right, and is the hub to be reached"
        with pytest.raises(DataError, match=words):
            HuggingFace(name="nobody/nothing").load(Path("/nowhere"))

    def test_of_no_place_or_of_two_are_refused_with_the_recipe(self) -> None:
        for settings in ({}, {"path": "a", "name": "b"}):
            with pytest.raises(ValidationError, match="needs either `path`"):
                HuggingFace.model_validate({"source": "huggingface", **settings})


def test_labels_that_the_training_lacks_are_named(tmp_path: Path) -> None:
    texts(tmp_path)
    line = '{"sentence": "film", "label": "so so"}\n'
    (tmp_path / "validation.jsonl").write_text(line)
    refused(
        tmp_path,
        "'label' has so so, which the training rows do not have; their classes are bad, good",
        tokenizer=tmp_path / "t",
        test="validation",
    )


def test_numbers_are_learnt_as_they_are(tables: Any, tmp_path: Path) -> None:
    weights = {split: np.linspace(0, 1, len(table)).tolist() for split, table in tables.items()}
    weighed = {split: tables[split].remove_columns("kind").add_column("weight", weights[split]) for split in tables}
    datasets.DatasetDict(weighed).save_to_disk(str(tmp_path / "weighed"))
    source = HuggingFace(path=tmp_path / "weighed", label="weight", size=8, workers=1)
    data = source.load(tmp_path, "numbers")
    assert data.classes == ()
    assert data.train.target.shape == (24, 1)
    refused(tmp_path / "weighed", "no column holds classes; name what is to be learnt with `label`")
