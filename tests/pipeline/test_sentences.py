import pytest

from potstill.pipeline.errors import DataError
from potstill.pipeline.sentences import hold_out

SENTENCES = [f"{begin} film number {each}" for each in range(10) for begin in ("it is a good", "this is one bad")]
PHRASES = [
    "good film",
    "bad",
    "is one bad film number 3",
    "it is a good film",
    "number 4",
    "it is a good film number 4",
]
LABELS = [1, 0] * 10 + [1, 0, 0, 1, 1, 1]


def is_part(part: str, whole: str) -> bool:
    return f" {part} " in f" {whole} "


class TestHoldOut:
    texts = SENTENCES + PHRASES
    found = hold_out(texts, LABELS, 6, "train")

    def test_takes_whole_sentences_of_each_class_in_its_share(self) -> None:
        assert len(self.found.validation) == 6
        assert all(position < len(SENTENCES) for position in self.found.validation)
        assert sum(LABELS[position] for position in self.found.validation) == 3

    def test_leaves_nothing_in_train_that_is_part_of_a_held_out_text_or_equal_to_one(self) -> None:
        held = [self.texts[position] for position in self.found.validation]
        kept = [self.texts[position] for position in self.found.train]
        assert not [(part, whole) for part in kept for whole in held if is_part(part, whole) or is_part(whole, part)]

    def test_drops_no_more_than_that(self) -> None:
        held = [self.texts[position] for position in self.found.validation]
        for position in self.found.dropped:
            assert any(is_part(self.texts[position], whole) for whole in held)

    def test_puts_every_text_into_one_place(self) -> None:
        places = [*self.found.validation, *self.found.train, *self.found.dropped]
        assert sorted(places) == list(range(len(self.texts)))

    def test_does_not_take_letters_for_words(self) -> None:
        found = hold_out(["art", "a party piece", "fine art here", "something else"], [0, 1, 0, 1], 1, "train")
        assert 0 in (*found.train, *found.dropped)
        assert found.dropped == ([0] if found.validation == [2] else [])

    def test_says_how_many_whole_texts_there_are(self) -> None:
        with pytest.raises(DataError, match=r"train: `validation: 11` is more than half of the 20 whole texts"):
            hold_out(self.texts, LABELS, 11, "train")
