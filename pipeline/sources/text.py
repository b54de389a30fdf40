"""Texts and their classes, from .npz, .tsv, .csv or .jsonl files; cut into word pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ..augmentation import Augmentation
from ..data import DataSource
from ..data_checks import CheckedReading, RawSamples, Reading, Samples
from ..errors import DataError
from ..lengths import MASK
from ..networks.text_encoder import TOKENS
from ..progress import Progress
from ..sentences import hold_out
from ..text_files import Texts, file_of, read_texts
from ..tokenizer import Text, Tokenizer


class TextSource(DataSource, frozen=True, extra="forbid"):
    """Texts with a class each, as one file a split: `.npz` (`text`, `y`), `.tsv`, `.csv` (with a header) or `.jsonl`.

    Models get token numbers `input_ids` and `attention_mask`, both (N, L) with L free. Validation is drawn by whole
    texts, and no part of them stays in training.
    """

    source: Literal["text"] = "text"
    path: Path
    """The folder; a relative path starts at the recipe's."""
    train: Annotated[str, Field(min_length=1)] = "train"
    """The file of the training split, with or without its ending."""
    test: Annotated[str, Field(min_length=1)] = "test"
    """Likewise of the split that is read for measuring alone."""
    text: Annotated[str, Field(min_length=1)] = "text"
    """The column, or the key in JSON, that holds the text."""
    label: Annotated[str, Field(min_length=1)] = "label"
    """Likewise of the class: its number from 0, or its name."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """The classes' names in order of their numbers; without, names in the files are numbered alphabetically."""
    vocabulary: Annotated[int, Field(ge=64)] = 8000
    """How many word pieces are made of the training texts at most."""
    max_length: Annotated[int, Field(ge=8, le=4096)] = 64
    """Tokens, the two at a text's ends among them; what is longer is cut at the end."""
    lowercase: bool = True
    """Whether capital letters, and accents, are taken for plain ones."""
    tokenizer: Path | None = None
    """A `tokenizer.json` of Hugging Face's, or its folder, in place of one made of the training texts: what a trained
    model was trained with. `vocabulary` and `lowercase` are then its own."""
    augment: Annotated[tuple[Augmentation, ...], Field(max_length=0)] = ()
    """Texts are not augmented."""

    def read(self, directory: Path, progress: Progress) -> Reading:
        """All splits, tokenised by what was made of the training texts that are left."""
        folder = directory / self.path.expanduser()
        train, test = (read_texts(file_of(folder, name), self.text, self.label) for name in (self.train, self.test))
        classes = self._classes(train)
        splits = self._split(train, classes)
        tokenizer = self._tokenizer(splits["train"].texts, directory, progress)
        splits["test"] = _Labelled.of(test, classes)
        raw = {name: split.samples(tokenizer) for name, split in splits.items()}
        return Reading(
            raw["train"],
            raw["test"],
            self._described(folder, tokenizer, splits, len(train.texts)),
            validation=raw.get("validation"),
            classes=classes,
            text=Text(tokenizer, tuple(test.texts)),
        )

    def held_out(self, reading: CheckedReading) -> tuple[Samples, Samples | None]:
        """As `read` has split them: before the tokenizer was made."""
        return reading.train, reading.validation

    def _classes(self, train: Texts) -> tuple[str, ...] | None:
        """As given, or the names that the training labels have; None where they are numbers."""
        if self.classes is not None or isinstance(train.labels[0], int):
            return self.classes
        return tuple(sorted({str(label) for label in train.labels}))

    def _split(self, train: Texts, classes: Sequence[str] | None) -> dict[str, "_Labelled"]:
        whole = _Labelled.of(train, classes)
        if not self.validation:
            return {"train": whole}
        plain = [text.lower() for text in whole.texts] if self.lowercase else whole.texts
        held = hold_out(plain, whole.labels, self.validation, train.origin)
        return {"train": whole.at(held.train), "validation": whole.at(held.validation)}

    def _tokenizer(self, texts: Sequence[str], directory: Path, progress: Progress) -> Tokenizer:
        if self.tokenizer is not None:
            return Tokenizer.read(directory / self.tokenizer.expanduser(), max_length=self.max_length)
        progress.say(f"makes a tokenizer of {len(texts):,} texts")
        return Tokenizer.trained(
            texts, vocabulary=self.vocabulary, max_length=self.max_length, lowercase=self.lowercase
        )

    def _described(self, folder: Path, tokenizer: Tokenizer, splits: dict[str, "_Labelled"], count: int) -> str:
        words = [f"{folder.name} texts, {tokenizer.size} word pieces"]
        left_out = count - len(splits["train"].texts) - self.validation
        if left_out:
            words.append(f"{left_out} texts left out of train that are part of validation texts")
        known = set(splits["train"].texts)
        again = sum(text in known for text in splits["test"].texts)
        if again:
            words.append(f"{again} test texts are in train, too")
        return ", ".join(words)


@dataclass(frozen=True)
class _Labelled:
    """A split before it is tokenised."""

    texts: list[str]
    labels: list[int]
    origin: str

    @classmethod
    def of(cls, read: Texts, classes: Sequence[str] | None) -> "_Labelled":
        """With class numbers in place of names; DataError for a name that is none of the classes."""
        numbers = {name: number for number, name in enumerate(classes or ())}
        labels: list[int] = []
        for position, label in enumerate(read.labels):
            if isinstance(label, str) and label not in numbers:
                raise DataError(
                    f"{read.origin}: the label of text {position} (from 0) is {label!r}, which is no class; "
                    + (f"the classes are {', '.join(numbers)}" if numbers else "name the `classes` in their order")
                )
            labels.append(numbers[label] if isinstance(label, str) else label)
        return cls(read.texts, labels, read.origin)

    def at(self, positions: Sequence[int]) -> "_Labelled":
        """The texts at these positions."""
        return _Labelled([self.texts[p] for p in positions], [self.labels[p] for p in positions], self.origin)

    def samples(self, tokenizer: Tokenizer) -> RawSamples:
        """As numbers."""
        encoded = tokenizer.encoded(self.texts)
        return RawSamples({TOKENS: encoded.tokens, MASK: encoded.mask}, np.array(self.labels, np.int64), self.origin)
