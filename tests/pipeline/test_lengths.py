import pytest
import torch

from potstill.pipeline.errors import DataError
from potstill.pipeline.lengths import POOL, cut, example_pair, free_inputs, lengths_of, order_by_length


def padded(*lengths: int, longest: int = 9) -> dict[str, torch.Tensor]:
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": 7 * mask, "attention_mask": mask}


class TestFreeInputs:
    def test_are_the_whole_numbers_of_the_masks_shape(self) -> None:
        others = {"image": torch.zeros(2, 9, 4, 4), "scores": torch.zeros(2, 9), "kind": torch.zeros(2, 3).long()}
        assert free_inputs({**padded(3, 9), **others}) == ("input_ids", "attention_mask")

    def test_are_none_without_a_mask(self) -> None:
        assert free_inputs({"tokens": torch.zeros(2, 9).long(), "mask": torch.ones(2, 9).long()}) == ()

    def test_keep_what_a_batch_needs(self) -> None:
        short = cut({**padded(3, 5), "other": torch.zeros(2, 9, 1)}, 5)
        assert [tuple(tensor.shape) for tensor in short.values()] == [(2, 5), (2, 5), (2, 9, 1)]

    def test_are_two_long_in_examples_for_torch_export(self) -> None:
        assert [tuple(tensor.shape) for tensor in example_pair(padded(1, longest=1))] == [(2, 2), (2, 2)]


class TestLengths:
    def test_are_the_masks_sums(self) -> None:
        lengths = lengths_of(padded(3, 9, 1), "train")
        assert lengths is not None
        assert lengths.tolist() == [3, 9, 1]

    @pytest.mark.parametrize("row", [[0, 0, 0], [0, 1, 1], [1, 0, 1], [2, 0, 0]])
    def test_of_a_mask_that_is_no_row_of_ones_are_refused(self, row: list[int]) -> None:
        mask = torch.tensor([[1, 1, 0], row])
        with pytest.raises(DataError, match="train: attention_mask of sample 1 is no row of ones"):
            lengths_of({"attention_mask": mask}, "train")


class TestOrder:
    lengths = torch.randint(1, 40, (1003,), generator=torch.Generator().manual_seed(0))

    def order(self, seed: int = 1) -> torch.Tensor:
        return order_by_length(self.lengths, 8, torch.Generator().manual_seed(seed))

    def test_holds_every_sample_once_and_hangs_on_the_draws_alone(self) -> None:
        assert sorted(self.order().tolist()) == list(range(1003))
        assert torch.equal(self.order(), self.order())
        assert not torch.equal(self.order(), self.order(2))

    def test_pads_hardly_anything(self) -> None:
        batches = self.lengths[self.order()[:1000]].view(-1, 8)
        assert int(batches.max(1).values.sum()) * 8 < 1.1 * int(batches.sum())

    def test_mixes_short_and_long_batches(self) -> None:
        means = self.lengths[self.order()[: 8 * POOL]].view(-1, 8).float().mean(1)
        assert 0 < int((means.diff() > 0).sum()) < POOL - 1

    def test_of_fewer_samples_than_a_batch_is_a_shuffle(self) -> None:
        found = order_by_length(self.lengths[:5], 8, torch.Generator().manual_seed(0))
        assert sorted(found.tolist()) == list(range(5))
