"""Texts as the numbers of their tokens."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingDependency

PADDINGS = ("[PAD]", "<pad>")
"""What the padding is called."""


def tokenized(texts: Sequence[object], file: Path, max_length: int, origin: str) -> dict[str, NDArray[np.int64]]:
    """`input_ids` and `attention_mask`, both (N, max_length): cut or padded at the end, with 1 for tokens."""
    empty = [number for number, text in enumerate(texts) if not isinstance(text, str)]
    if empty:
        raise DataError(f"{origin}: {len(empty)} rows have no text, first row {empty[0]}; remove them")
    tokenizer = _opened(file)
    padding = next((name for name in PADDINGS if tokenizer.token_to_id(name) is not None), None)
    if padding is None:
        raise DataError(f"{file} has no token to pad with: none is called {' or '.join(PADDINGS)}")
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(padding), pad_token=padding, length=max_length)
    found = tokenizer.encode_batch(list(texts))
    ids = np.array([each.ids for each in found], np.int64)
    return {"input_ids": ids, "attention_mask": np.array([each.attention_mask for each in found], np.int64)}


def _opened(file: Path) -> Any:
    try:
        package: Any = import_module("tokenizers")
    except ImportError as error:
        raise MissingDependency("texts are cut into tokens by tokenizers: pip install 'potstill[text]'") from error
    if not file.is_file():
        raise DataError(f"{file}: no such file; `tokenizer` names a tokenizer.json of Hugging Face's tokenizers")
    try:
        return package.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain exceptions
        raise DataError(f"{file} is no tokenizer.json of Hugging Face's tokenizers ({error})") from error
