"""Facts about random changes of clips."""

import pytest
import torch

from potstill.pipeline.augmentation import View
from potstill.pipeline.sound_augmentation import SoundDraws

COUNT, SAMPLES = 40, 2000
KINDS = ("time_shift", "volume", "noise", "time_mask", "frequency_mask")


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randint(-9000, 9000, (COUNT, SAMPLES), generator=torch.Generator().manual_seed(0)).to(torch.int16)


def changed(clips: torch.Tensor, *kinds: str, view: int = 0, index: torch.Tensor | None = None) -> torch.Tensor:
    index = torch.arange(COUNT) if index is None else index
    return SoundDraws.of(View(3, view), COUNT).at(index).applied({"audio": clips[index]}, kinds)["audio"]


def test_a_clip_looks_the_same_in_every_batch_of_a_view_and_otherwise_in_another_view(clips: torch.Tensor) -> None:
    whole = changed(clips, *KINDS)
    some = torch.tensor([7, 3, 21])
    assert torch.allclose(changed(clips, *KINDS, index=some), whole[some], atol=0.01)
    assert (changed(clips, *KINDS, view=1) - whole).abs().amax(1).min() > 100


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_most_clips_and_keeps_their_shape(clips: torch.Tensor, kind: str) -> None:
    after = changed(clips, kind)
    assert after.shape == clips.shape
    assert after.dtype == torch.float32
    assert ((after - clips).abs().amax(1) > 1).float().mean() > 0.9
    assert torch.equal(changed(clips), clips.float())


def test_a_shift_moves_the_clip_by_up_to_a_tenth_and_fills_with_silence(clips: torch.Tensor) -> None:
    moves: set[int] = set()
    for before, after in zip(clips.float(), changed(clips, "time_shift"), strict=True):
        move = next(
            move
            for move in range(-200, 201)
            if torch.equal(after[max(move, 0) :][:1700], before[max(-move, 0) :][:1700])
        )
        outside = after[:move] if move > 0 else after[SAMPLES + move :]
        assert not outside.any()
        moves.add(move)
    assert min(moves) < -100
    assert max(moves) > 100


def test_noise_is_so_many_decibels_below_the_clip(clips: torch.Tensor) -> None:
    noise = changed(clips, "noise") - clips
    decibels = 10 * (clips.float().square().mean(1) / noise.square().mean(1)).log10()
    assert 4.5 < decibels.min() < 12
    assert 33 < decibels.max() < 40.5
    correlation = (noise[0] * noise[1]).mean() / noise[0].std() / noise[1].std()
    assert correlation.abs() < 0.1


def test_silence_stays_silent() -> None:
    assert not changed(torch.zeros(COUNT, SAMPLES, dtype=torch.int16), *KINDS).any()


def test_masks_take_out_a_span_of_time_and_a_band_of_frequencies(clips: torch.Tensor) -> None:
    clips = clips.masked_fill(clips == 0, 1)
    silent = changed(clips, "time_mask") == 0
    assert 100 < silent.sum(1).max() <= 201
    assert (silent[:, 1:] & ~silent[:, :-1]).sum(1).max() <= 1
    spectrum = torch.fft.rfft(changed(clips, "frequency_mask")).abs()
    missing = spectrum < 1e-3 * spectrum.amax()
    assert 60 < missing.sum(1).max() <= SAMPLES // 16 + 10
