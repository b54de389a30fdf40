"""Word pieces: from texts to numbers and back to one JSON file, that of Hugging Face's package `tokenizers`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, MissingDependency

FILE = "tokenizer.json"
UNKNOWN, PADDING, BEGIN, END = "[UNK]", "[PAD]", "[CLS]", "[SEP]"
INSIDE = "##"
"""Begins the pieces that do not begin a word."""
SPECIAL = (PADDING, UNKNOWN, BEGIN, END)
"""In the order of their numbers, the first of which is 0."""
PADDINGS = (PADDING, "<pad>")
"""What the padding is called in other people's files."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that cuts texts to a longest length and pads them to the longest of those given at once."""

    json: str
    """The whole of it, as ``tokenizer.json`` holds it."""

    @classmethod
    def trained(cls, texts: Sequence[str], *, vocabulary: int, max_length: int, lowercase: bool) -> "Tokenizer":
        """Word pieces (Wu et al. 2016, arXiv 1609.08144) that these texts are made of most; words are split as BERT's.

        `vocabulary` counts the four special tokens, too; fewer pieces come out where the texts hold no more. The same
        texts give the same pieces.
        """
        package = _package()
        trained = _wordpiece(package, {}, lowercase)
        # The package numbers the letters inside of words in an order that differs from process to process, and takes
        # that for a tie-break. Letters that are special have fixed numbers, and are special for the training alone.
        letters = sorted(set(trained.normalizer.normalize_str("".join(set("".join(texts))))))
        inside = [f"{INSIDE}{letter}" for letter in letters if not letter.isspace()]
        trainer = package.trainers.WordPieceTrainer(
            vocab_size=vocabulary, special_tokens=[*SPECIAL, *inside], show_progress=False
        )
        trained.train_from_iterator(texts, trainer)
        return cls._bounded(_wordpiece(package, trained.get_vocab(), lowercase), max_length, PADDING)

    @classmethod
    def read(cls, file: Path, *, max_length: int) -> "Tokenizer":
        """From a ``tokenizer.json``, or a folder of one. DataError where there is none, or no token to pad with."""
        package = _package()
        found = file / FILE if file.is_dir() else file
        if not found.is_file():
            raise DataError(f"{found}: no such file; `tokenizer` names a {FILE}, or the folder of one")
        try:
            made: Any = package.Tokenizer.from_file(str(found))
        except Exception as error:  # the package raises plain exceptions
            raise DataError(f"{found} is no {FILE} of Hugging Face's tokenizers ({error})") from error
        padding = next((name for name in PADDINGS if made.token_to_id(name) is not None), None)
        if padding is None:
            raise DataError(f"{found} has no token to pad with: none is called {' or '.join(PADDINGS)}")
        return cls._bounded(made, max_length, padding)

    @classmethod
    def _bounded(cls, made: Any, max_length: int, padding: str) -> "Tokenizer":
        made.enable_truncation(max_length)
        made.enable_padding(pad_id=made.token_to_id(padding), pad_token=padding)
        return cls(made.to_str())

    @cached_property
    def _opened(self) -> Any:
        return _package().Tokenizer.from_str(self.json)

    @property
    def size(self) -> int:
        """How many tokens there are; their numbers are below it."""
        return self._opened.get_vocab_size()

    @property
    def max_length(self) -> int:
        """How many tokens are left of the longest texts."""
        return json.loads(self.json)["truncation"]["max_length"]

    def encoded(self, texts: Sequence[str]) -> "Encoded":
        """Token numbers and mask of every text, padded to `max_length`."""
        package = _package().Tokenizer.from_str(self.json)
        padding = package.padding
        package.enable_padding(pad_id=padding["pad_id"], pad_token=padding["pad_token"], length=self.max_length)
        found = package.encode_batch(list(texts))
        return Encoded(
            tokens=np.array([each.ids for each in found], np.int64),
            mask=np.array([each.attention_mask for each in found], np.int64),
            num_cut=sum(bool(each.overflowing) for each in found),
        )


@dataclass(frozen=True)
class Encoded:
    """Texts as numbers."""

    tokens: NDArray[np.int64]
    """(N, max_length)."""
    mask: NDArray[np.int64]
    """Of the same shape, 1 for tokens."""
    num_cut: int
    """How many of the texts are longer."""


@dataclass(frozen=True)
class Text:
    """What samples were before they were numbers."""

    tokenizer: Tokenizer
    test: tuple[str, ...] = field(repr=False)
    """The texts of the test split, in its order."""


def _wordpiece(package: Any, vocabulary: dict[str, int], lowercase: bool) -> Any:
    """A tokenizer of the package with these pieces, for training where there are none."""
    made = package.Tokenizer(package.models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN))
    made.normalizer = package.normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = package.pre_tokenizers.BertPreTokenizer()
    made.decoder = package.decoders.WordPiece(prefix=INSIDE)
    if vocabulary:
        made.add_special_tokens(list(SPECIAL))
        made.post_processor = package.processors.TemplateProcessing(
            single=f"{BEGIN} $A {END}", special_tokens=[(name, vocabulary[name]) for name in (BEGIN, END)]
        )
    return made


def _package() -> Any:
    try:
        return import_module("tokenizers")
    except ImportError as error:
        raise MissingDependency("texts are cut into word pieces by tokenizers: pip install 'potstill[text]'") from error
