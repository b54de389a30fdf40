"""Facts about the log-mel front end, against a computation of its own by NumPy's Fourier transform."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.cost import macs, num_parameters
from potstill.pipeline.errors import DataError
from potstill.pipeline.front_end import FLOOR, FrontEnd, LogMel, LogMelModule, mel_filters
from potstill.pipeline.networks.ds_cnn import DSCNN
from potstill.pipeline.quantization import capture, module_path, operator_name

Array = NDArray[np.float64]


def hertz_of(mel: float, scale: str) -> float:
    """Slaney's scale in steps of a semitone-like factor, or the HTK Book's formula; both written anew."""
    if scale == "htk":
        return 700 * (math.exp(mel * math.log(10) / 2595) - 1)
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def mel_of(hertz: float, scale: str) -> float:
    if scale == "htk":
        return 2595 / math.log(10) * math.log(1 + hertz / 700)
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def bands(rate: int, window: int, settings: LogMel) -> Array:
    """The triangles by interpolation between their corners."""
    high = settings.high or rate / 2
    ends = np.linspace(mel_of(settings.low, settings.scale), mel_of(high, settings.scale), settings.mels + 2)
    corners = [hertz_of(end, settings.scale) for end in ends]
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    return np.stack(
        [np.interp(frequencies, corners[at : at + 3], [0, 1, 0], left=0, right=0) for at in range(settings.mels)]
    )


def by_fft(audio: NDArray[Any], front_end: FrontEnd) -> Array:
    """Maps (B, mels, frames) of waveforms (B, samples), frame by frame."""
    window, hop = front_end.window, front_end.hop
    hann = np.hanning(window + 1)[:-1]
    starts = range(0, audio.shape[1] - window + 1, hop)
    power = np.stack([np.abs(np.fft.rfft(audio[:, at : at + window] * hann)) ** 2 for at in starts], 2)
    energies = np.einsum("mf,bft->bmt", bands(front_end.rate, window, front_end.settings), power)
    return (np.log(energies + FLOOR) - front_end.mean) / front_end.deviation


def audio(samples: int, seed: int = 0) -> Array:
    """Noise, a tone with noise, a short click in silence, and silence."""
    draws = np.random.default_rng(seed)
    click, silence = np.zeros(samples), np.zeros(samples)
    click[samples // 2 : samples // 2 + 5] = 0.9
    wave = 0.5 * np.sin(np.arange(samples) * 0.7) + draws.normal(0, 0.01, samples)
    return np.stack([draws.uniform(-1, 1, samples), wave, click, silence])


CASES = [
    (LogMel(), 8000, 4000),
    (LogMel(window=0.025, hop=0.01, mels=80, low=0, scale="htk"), 16_000, 8000),
    (LogMel(window=0.0251, hop=0.0133, mels=20, low=100, high=3000), 8000, 3001),
]


@pytest.mark.parametrize(("settings", "rate", "samples"), CASES)
def test_its_maps_are_those_of_a_fourier_transform(settings: LogMel, rate: int, samples: int) -> None:
    front_end = FrontEnd(settings=settings, rate=rate, mean=-3.5, deviation=2.25)
    clips = audio(samples)
    maps = front_end.module()(torch.tensor(clips, dtype=torch.float32)).numpy()
    expected = by_fft(clips, front_end)
    assert maps.shape == expected.shape == (4, *front_end.shape(samples)[1:])
    assert np.abs(maps - expected).max() < 1e-3
    assert maps[3].std() < 1e-6  # silence is the floor
    assert expected.std() > 1


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_bands_are_triangles_that_meet_at_their_centres(scale: Any) -> None:
    settings = LogMel(mels=30, scale=scale, window=0.1)
    filters = mel_filters(8000, 800, settings).numpy()
    assert np.abs(filters - bands(8000, 800, settings)).max() < 1e-9
    inner = filters.sum(0)[20:350]  # from the first centre to the last
    assert np.allclose(inner, 1)


def test_a_tone_is_loudest_in_the_band_of_its_frequency() -> None:
    settings = LogMel(mels=32)
    front_end = FrontEnd(settings=settings, rate=8000)
    for hertz in (250, 1000, 2500):
        wave = torch.sin(2 * math.pi * hertz * torch.arange(4000) / 8000)[None]
        loudest = int(front_end.module()(wave)[0, :, 5].argmax())
        expected = int(
            mel_filters(8000, front_end.window, settings)[:, round(hertz * front_end.window / 8000)].argmax()
        )
        assert loudest == expected


class TestItStaysInFloat32:
    clips = torch.tensor(audio(4000), dtype=torch.float32)

    @pytest.fixture
    def module(self) -> LogMelModule:
        return FrontEnd(settings=LogMel(), rate=8000).module()

    def test_under_mixed_precision(self, module: LogMelModule) -> None:
        plain = module(self.clips)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(module(self.clips), plain)

    def test_when_its_model_is_cast(self, module: LogMelModule) -> None:
        plain = module(self.clips)
        assert module.to(torch.bfloat16).waves.dtype == torch.float32
        assert torch.equal(module.half()(self.clips), plain)

    def test_in_a_captured_graph_of_which_it_is_one_node(self, model: torch.nn.Module) -> None:
        graph = capture(model, {"audio": self.clips})
        paths = [module_path(node) for node in graph.graph.nodes if operator_name(node)]
        assert "network.conv1" in paths
        assert not any(path.startswith("front_end") for path in paths)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(
                graph.get_submodule("front_end")(self.clips), model.get_submodule("front_end")(self.clips)
            )
        with torch.no_grad():
            assert torch.allclose(graph(self.clips), model(self.clips), atol=1e-5)


BLUEPRINT = Blueprint(
    model=DSCNN(width=8, depth=1),
    input_shapes={"audio": (4000,)},
    num_classes=3,
    front_end=FrontEnd(settings=LogMel(), rate=8000, mean=-4.0, deviation=3.0),
)


@pytest.fixture
def model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BLUEPRINT.build().eval()


class TestAModelWithOne:
    def test_has_no_more_parameters_and_no_more_state_than_its_network(self, model: torch.nn.Module) -> None:
        network = DSCNN(width=8, depth=1).build((1, 40, 30), 3)
        assert num_parameters(model) == num_parameters(network)
        assert [name.removeprefix("network.") for name in model.state_dict()] == list(network.state_dict())
        inputs, maps = {"audio": torch.zeros(1, 4000)}, {"image": torch.zeros(1, 1, 40, 30)}
        assert macs(model, inputs) == macs(network, maps)

    def test_comes_back_from_its_files(self, model: torch.nn.Module, tmp_path: Path) -> None:
        inputs = {"audio": torch.tensor(audio(4000), dtype=torch.float32)}
        Artifact(model=model, blueprint=BLUEPRINT).save(tmp_path, inputs)
        loaded = Artifact.load(tmp_path)
        assert loaded.blueprint == BLUEPRINT
        with torch.no_grad():
            assert torch.equal(loaded.model(*inputs.values()), model(*inputs.values()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"high": 5000}, "hold frequencies up to 4000 Hz"),
        ({"low": 4000}, "bands go from 4000 to 4000 Hz"),
        ({"window": 0.6}, r"a window of 4,800 samples every 128 does not fit a clip of 4,000"),
        ({"hop": 0.00001}, "every 0 does not fit"),
        ({"mels": 256}, r"\d+ of the 256 mel bands are so narrow"),
    ],
)
def test_settings_that_do_not_fit_the_clips_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        FrontEnd(settings=LogMel(**settings), rate=8000).check(4000)
