"""Images or texts of Hugging Face's package `datasets`, from local files or the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from numpy.typing import NDArray
from pydantic import Field, model_validator

from ..data_checks import RawSamples, Reading
from ..errors import DataError
from ..hub.columns import TablePictures, class_names, image_column, label_column, targets_of, text_column
from ..hub.opening import Table, opened_files, opened_from_hub
from ..images.division import Labelled
from ..images.source import PictureSource
from ..lengths import MASK
from ..networks.text_encoder import TOKENS
from ..progress import Progress
from ..tokenizer import Text, Tokenizer

VALIDATION = ("validation", "valid", "val", "dev")
"""Splits that are chosen on where they are there, and not measured on."""
OF_IMAGES = ("size", "resize", "duplicates", "workers", "memory_bytes", "cache", "augment")
OF_TEXTS = ("tokenizer", "max_length")

Name = Annotated[str, Field(min_length=1)]


class HuggingFace(PictureSource, frozen=True, extra="forbid"):
    """A data set of images or texts with classes, as the package `datasets` opens it (extra `huggingface`)."""

    source: Literal["huggingface"] = "huggingface"
    path: Path | None = None
    """On this machine: a .parquet, .arrow, .csv or .json file, a folder of them or of images, or what `save_to_disk`
    wrote; a relative path starts at the recipe's folder."""
    name: Name | None = None
    """On the hub, such as `uoft-cs/cifar10`; downloaded once, into the package's own cache."""
    subset: Name | None = None
    """Which of a data set's configurations."""
    revision: Name | None = None
    """Which commit or tag on the hub; without, the newest."""
    train: Name = "train"
    """The split that is trained on."""
    image: Name | None = None
    """The column of images; without, the only one."""
    text: Name | None = None
    """The column of texts; without, the only one, where there are no images."""
    label: Name | None = None
    """The column to learn; without, the only one of classes, or `label`."""
    tokenizer: Path | None = None
    """For texts: a `tokenizer.json`, or its folder, which makes `input_ids` and `attention_mask` of them."""
    max_length: Annotated[int, Field(ge=2, le=8192)] = 128
    """For texts: the number of tokens that longer ones are cut to."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.name is None):
            raise ValueError("needs either `path`, of files on this machine, or `name`, of a data set on the hub")
        if self.revision is not None and self.name is None:
            raise ValueError("`revision` is for data sets on the hub, which have a `name`; leave it out")
        if self.image is not None and self.text is not None:
            raise ValueError("takes either images or texts; leave `image` or `text` out")
        return self

    def read(self, directory: Path, progress: Progress) -> Reading:
        """All splits, as uint8 images (N, 3, size, size), or as token numbers of free length."""
        tables = self._tables(directory)
        train = tables["train"]
        image = None if self.text else image_column(train, self.image)
        text = None if image else text_column(train, self.text)
        if image is None and text is None:
            raise DataError(f"{self._title}: no column holds images or texts: {', '.join(train.features)}")
        self._demand_columns(tables, [name for name in (image, text, label_column(train, self.label)) if name])
        if image is not None:
            return self._images(tables, image, directory, progress)
        assert text is not None
        return self._texts(tables, text, directory)

    @property
    def _title(self) -> str:
        return self.name or (self.path.name if self.path is not None else "")

    def _tables(self, directory: Path) -> dict[str, Table]:
        if self.name is not None:
            splits = opened_from_hub(self.name, self.subset, self.revision)
        else:
            assert self.path is not None
            splits = opened_files(directory / self.path.expanduser(), self.subset)
        wanted = {"train": self.train} | ({"test": self.test} if isinstance(self.test, str) else {})
        lacking = [name for name in wanted.values() if name not in splits]
        if lacking:
            raise DataError(
                f"{self._title}: has no split {' and none called '.join(lacking)}, only {', '.join(splits)}; choose "
                "with `train` and `test`, or give `test: 0.2`, a share of the training split to measure on"
            )
        if not isinstance(self.test, str) and "test" in splits:
            raise DataError(
                f"{self._title}: has a split test, and `test: {self.test:g}` asks for a share of {self.train} to "
                "measure on; leave `test` out"
            )
        held = [name for name in VALIDATION if name in splits and name not in wanted.values()]
        return {key: splits[name] for key, name in wanted.items()} | ({"validation": splits[held[0]]} if held else {})

    def _demand_columns(self, tables: Mapping[str, Table], columns: list[str]) -> None:
        for split, table in tables.items():
            lacking = [name for name in columns if name not in table.features]
            if lacking:
                raise DataError(f"{self._title}, {split}: has no column {', '.join(lacking)}, which train has")

    def _targets(self, tables: Mapping[str, Table]) -> tuple[dict[str, NDArray[Any]], tuple[str, ...] | None]:
        label = label_column(tables["train"], self.label)
        classes = class_names(tables["train"], label)
        origins = {split: f"{self._title}, {split}" for split in tables}
        return {split: targets_of(table, label, classes, origins[split]) for split, table in tables.items()}, classes

    def _images(self, tables: Mapping[str, Table], column: str, directory: Path, progress: Progress) -> Reading:
        self._refuse(OF_TEXTS, "texts, and images are read")
        targets, classes = self._targets(tables)
        splits = {
            split: Labelled.of(TablePictures.of(table, column, split), targets[split], f"{self._title}, {split}")
            for split, table in tables.items()
        }
        return self.reading_of(splits, classes, self._title, directory, progress)

    def _texts(self, tables: Mapping[str, Table], column: str, directory: Path) -> Reading:
        self._refuse(OF_IMAGES, "images, and texts are read")
        if self.tokenizer is None:
            raise DataError(f"{self._title}: texts ({column}) need a `tokenizer`, the path of a tokenizer.json")
        if not isinstance(self.test, str):
            raise DataError(f"{self._title}: texts are measured on a split of their own; name it with `test`")
        targets, classes = self._targets(tables)
        tokenizer = Tokenizer.read(directory / self.tokenizer.expanduser(), max_length=self.max_length)
        texts = {split: _texts_of(table, column, f"{self._title}, {split}") for split, table in tables.items()}
        samples: dict[str, RawSamples] = {}
        for split, each in texts.items():
            encoded = tokenizer.encoded(each)
            inputs = {TOKENS: encoded.tokens, MASK: encoded.mask}
            samples[split] = RawSamples(inputs, targets[split], f"{self._title}, {split}")
        return Reading(
            samples["train"],
            samples["test"],
            self._title,
            validation=samples.get("validation"),
            classes=classes,
            text=Text(tokenizer, tuple(texts["test"])),
        )

    def _refuse(self, keys: tuple[str, ...], what: str) -> None:
        given = [key for key in keys if key in self.model_fields_set]
        if given:
            raise DataError(f"{self._title}: {', '.join(given)} {'is' if len(given) == 1 else 'are'} for {what}")


def _texts_of(table: Table, column: str, origin: str) -> list[str]:
    texts: list[object] = table[column][:]
    empty = [number for number, text in enumerate(texts) if not isinstance(text, str)]
    if empty:
        raise DataError(f"{origin}: {len(empty)} rows have no text, first row {empty[0]}; remove them")
    return [text for text in texts if isinstance(text, str)]
