"""Facts about the proof of a cut: right ones pass, wrong index maps are caught although every shape fits."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from potstill.pipeline.networks.resnet import ResNet
from potstill.stages.pruning.channels import Channels, CutError, Kept, all_channels, cut
from potstill.stages.pruning.groups import kept_channels
from potstill.stages.pruning.proof import prove, silenced
from potstill.stages.pruning.units import channel_groups

INPUTS = {"image": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


def resnet(shortcut: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet(depth=8, width=8, shortcut=shortcut).build((1, 8, 8), 4)  # pyright: ignore
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)  # pyright: ignore
    return model.eval()


def without(kept: dict[str, Channels], read: dict[str, set[int]], written: dict[str, set[int]]) -> dict[str, Channels]:
    return {
        path: Channels(
            tuple(index for index in channels.read if index not in read.get(path, ())),
            tuple(index for index in channels.written if index not in written.get(path, ())),
        )
        for path, channels in kept.items()
    }


def proven(model: nn.Module, layers: Mapping[str, Channels]) -> None:
    kept = Kept(layers)
    prove(model, cut(model, kept)[0], kept, INPUTS)


CONV = resnet("conv")
GROUPS = channel_groups(CONV, INPUTS, set()).groups


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_channels_of_any_groups_can_go_together(draw: st.DataObject) -> None:
    removals = [(group, draw.draw(st.sets(st.integers(0, group.num_channels - 2)))) for group in GROUPS]
    proven(CONV, kept_channels(CONV, removals).layers)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_another_channel_in_one_of_the_layers_is_caught(draw: st.DataObject) -> None:
    group = draw.draw(st.sampled_from(GROUPS))
    kept = kept_channels(CONV, [(group, [1])]).layers
    member = draw.draw(st.sampled_from(group.members))
    other = draw.draw(st.integers(2, group.num_channels - 1))
    shift = tuple(index for index in range(group.num_channels) if index != other)
    channels = kept[member.path]
    wrong = Channels(shift, channels.written) if member.reads else Channels(channels.read, shift)
    with pytest.raises(CutError, match="computes something else"):
        proven(CONV, {**kept, member.path: wrong})


STREAM = {
    1: ("conv1", "bn1", "layer1.0.conv2", "layer1.0.bn2"),
    2: ("layer2.0.conv2", "layer2.0.bn2"),
    3: ("layer3.0.conv2", "layer3.0.bn2"),
}
READERS = {1: ("layer1.0.conv1", "layer2.0.conv1"), 2: ("layer3.0.conv1",), 3: ("linear",)}


def stream_without(model: nn.Module, gone: dict[int, set[int]]) -> dict[str, Channels]:
    read = {path: gone[stage] for stage, paths in READERS.items() for path in paths}
    written = {path: gone[stage] for stage, paths in STREAM.items() for path in paths}
    return without(all_channels(model), read, written)


def test_a_padding_shortcut_cut_with_its_offset_passes() -> None:
    model = resnet("pad")
    # Each shortcut puts its 8 (16) channels behind 4 (8) of padding.
    proven(model, stream_without(model, {1: {2, 5}, 2: {6, 9}, 3: {14, 17}}))


def test_a_padding_shortcut_cut_without_its_offset_is_caught() -> None:
    model = resnet("pad")
    kept = stream_without(model, {stage: {2, 5} for stage in STREAM})
    assert cut(model, Kept(kept))[0](*INPUTS.values()).shape == (2, 4)  # every shape fits
    with pytest.raises(CutError, match="computes something else"):
        proven(model, kept)


def test_a_silenced_channel_is_silent_behind_a_sigmoid_too() -> None:
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    model = nn.Sequential(first, nn.Sigmoid(), last)
    silent = silenced(model, Kept({"0": Channels((0, 1, 2), (0, 2)), "2": Channels((0, 2), (0, 1))}))
    x = torch.randn(5, 3)
    hidden = torch.sigmoid(first(x))
    expected = hidden[:, [0, 2]] @ last.weight[:, [0, 2]].T + last.bias
    assert torch.allclose(silent(x), expected, atol=1e-6)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6), nn.LayerNorm(6, elementwise_affine=False)], ids=str)
def test_a_silenced_norm_takes_its_mean_over_the_kept_channels(norm: nn.Module) -> None:
    for parameter in norm.parameters():
        nn.init.uniform_(parameter)
    silent = silenced(nn.Sequential(norm), Kept({"0": Channels((), (0, 2, 5))}))
    x = torch.randn(4, 3, 6)
    alone = x[..., [0, 2, 5]]
    if isinstance(norm, nn.LayerNorm):
        alone = alone - alone.mean(-1, keepdim=True)
    expected = torch.zeros_like(x)
    expected[..., [0, 2, 5]] = alone / (alone.square().mean(-1, keepdim=True) + (norm.eps or 1.2e-7)).sqrt()  # pyright: ignore
    for name, parameter in norm.named_parameters():
        expected = expected * parameter if name == "weight" else expected + parameter
    gone = torch.tensor([1, 3, 4])
    assert torch.allclose(silent(x).index_fill(-1, gone, 0), expected.index_fill(-1, gone, 0), atol=1e-5)
    assert bool((silent(x)[..., gone] == 0).all())


class Embedded(nn.Module):
    """Words, and a position embedding that is a parameter of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(7, 6), nn.Parameter(torch.randn(1, 3, 6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.words(x) + self.positions))


def embedded(positions: tuple[int, ...], norm: tuple[int, ...]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Embedded().eval()
        nn.init.normal_(model.norm.weight)
    kept = Kept(
        {
            "words": Channels((), (0, 2, 5)),
            "positions": Channels((), positions, dim=2),
            "norm": Channels((), norm),
            "head": Channels((0, 2, 5), (0, 1)),
        }
    )
    pruned, edit = cut(model, kept)
    assert edit.tensors == {"positions": (1, 3, 3)}
    prove(model, pruned, kept, {"tokens": torch.tensor([[0, 6, 3], [1, 1, 2]])})


def test_a_stream_through_embedding_parameter_and_norm_is_cut() -> None:
    embedded((0, 2, 5), (0, 2, 5))


def test_another_channel_of_a_bare_parameter_or_a_norm_is_caught() -> None:
    with pytest.raises(CutError, match="computes something else"):
        embedded((0, 2, 4), (0, 2, 5))
    with pytest.raises(CutError, match="computes something else"):
        embedded((0, 2, 5), (0, 1, 5))


def test_a_network_without_batch_one_is_caught() -> None:
    class FixedBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.linear = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.hidden(x))
            return self.linear(x if x.shape[1] == 4 else x.reshape(2, -1))

    model = FixedBatch()
    kept = Kept({"hidden": Channels((0, 1, 2, 3), (0, 1)), "linear": Channels((0, 1), (0, 1))})
    with pytest.raises(CutError, match="does not run"):
        prove(model, cut(model, kept)[0], kept, {"x": torch.randn(2, 4)})


def test_unequal_groups_of_a_grouped_convolution_cannot_be_cut() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1, groups=2))
    with pytest.raises(CutError, match="2 groups of `0`"):
        cut(model, Kept({"0": Channels((0, 1, 2, 4), (0, 1, 4, 5))}))


def test_groups_that_keep_other_channels_of_their_own_are_cut_each_in_its_way() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    kept = {
        "0": Channels((0,), (0, 1, 5, 7)),
        "1": Channels((0, 1, 5, 7), (2, 3, 4, 5)),
        "2": Channels((2, 3, 4, 5), (0, 1)),
    }
    proven(model, kept)
