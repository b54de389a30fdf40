import json
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.pipeline.errors import DataError, MissingDependency
from potstill.pipeline.tokenizer import FILE, SPECIAL, Tokenizer
from tests.support.command_line import ROOT
from tests.support.small_texts import texts

TRAINED = f"""
import runpy
runpy.run_path({str(ROOT / "conftest.py")!r})
from potstill.pipeline.tokenizer import Tokenizer
from tests.support.small_texts import texts
print(Tokenizer.trained(texts(200, 0)[0], vocabulary=90, max_length=12, lowercase=True).json)
"""


def test_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependency, match=r"pip install 'potstill\[text\]'"):
        Tokenizer.trained(["a"], vocabulary=64, max_length=12, lowercase=True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    pytest.importorskip("tokenizers", reason="needs the text extra")
    return Tokenizer.trained(texts(200, 0)[0], vocabulary=90, max_length=12, lowercase=True)


class TestTokenizer:
    def test_is_the_same_in_every_process(self, tokenizer: Tokenizer) -> None:
        other = subprocess.run([sys.executable, "-c", TRAINED], capture_output=True, text=True, check=True, cwd=ROOT)
        assert other.stdout.strip() == tokenizer.json

    def test_keeps_to_the_vocabulary_and_numbers_the_special_tokens_first(self, tokenizer: Tokenizer) -> None:
        pieces = json.loads(tokenizer.json)["model"]["vocab"]
        assert tokenizer.size <= 90
        assert [pieces[name] for name in SPECIAL] == [0, 1, 2, 3]

    def test_gives_tokens_between_its_edges_and_zeros_behind(self, tokenizer: Tokenizer) -> None:
        encoded = tokenizer.encoded(["The FILM is dull", "the film"])
        assert encoded.tokens.shape == encoded.mask.shape == (2, 12)
        assert encoded.mask.sum(1).tolist() == [int((row != 0).sum()) for row in encoded.tokens]
        assert (encoded.tokens[:, 0] == 2).all()
        assert [int(row[count - 1]) for row, count in zip(encoded.tokens, encoded.mask.sum(1), strict=True)] == [3, 3]

    def test_knows_no_capital_letters_where_it_was_told_so(self, tokenizer: Tokenizer) -> None:
        small, large = tokenizer.encoded(["the film", "THE Film"]).tokens
        assert (small == large).all()

    def test_cuts_what_is_too_long_and_counts_it(self, tokenizer: Tokenizer) -> None:
        encoded = tokenizer.encoded(["film " * 40, "film"])
        assert encoded.num_cut == 1
        assert encoded.mask.sum(1).tolist() == [12, 3]

    def test_is_read_from_a_folder_with_another_length(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / FILE).write_text(tokenizer.json)
        read = Tokenizer.read(tmp_path, max_length=8)
        assert (read.size, read.max_length) == (tokenizer.size, 8)

    def test_that_is_none_is_refused(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file"):
            Tokenizer.read(tmp_path, max_length=8)
        (tmp_path / FILE).write_text("{}")
        with pytest.raises(DataError, match=r"is no tokenizer\.json"):
            Tokenizer.read(tmp_path, max_length=8)
