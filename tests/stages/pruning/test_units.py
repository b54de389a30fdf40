"""Facts about which channels hang together: what can be cut in which networks, and why the rest stays."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from potstill.pipeline.errors import StageError
from potstill.pipeline.networks.network import Network
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.networks.shufflenet_v2 import ShuffleNetV2
from potstill.pipeline.networks.vgg import VGG
from potstill.pipeline.networks.vit import ViT
from potstill.stages.pruning.channels import cut
from potstill.stages.pruning.groups import Counted, Grouping, kept_channels
from potstill.stages.pruning.trust import trusted
from potstill.stages.pruning.units import channel_groups
from tests.support.families import FAMILIES

Inputs = Mapping[str, Tensor]
Between = Callable[[Tensor], Tensor]


def image(*shape: int) -> dict[str, Tensor]:
    return {"image": torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The network with every tensor drawn, so that no norm is an identity and no bias is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.rand(tensor.shape) * 0.2)
    return model.eval()


def proven(model: nn.Module, inputs: Inputs) -> Grouping:
    return trusted(model, channel_groups(model, inputs, set()), inputs)


def of_network(network: Network, size: int = 16) -> Grouping:
    return proven(seeded(partial(network.build, (3, size, size), 5)), image(3, size, size))


def of_module(model: nn.Module, *shape: int) -> Grouping:
    return proven(seeded(lambda: model), image(*shape))


def units(grouping: Grouping) -> dict[str, int]:
    """How many there are to choose among, by the first layer of each group."""
    return {group.name: group.num_units for group in grouping.groups}


def reasons(grouping: Grouping) -> str:
    return "; ".join(map(str, grouping.left_alone))


class TestFamilies:
    @pytest.mark.parametrize(
        ("family", "expected"),
        [
            (
                "densenet",
                {"0.0": 16, "1.conv1": 48, "1.conv2": 12, "2.conv1": 48, "2.conv2": 12, "3.conv1": 48, "3.conv2": 12},
            ),
            (
                "mobilenet_v3",
                {
                    **{"0.0": 16, "1.expand.0": 48, "1.excite.squeeze": 12, "2.expand.0": 48, "2.project.0": 24},
                    **{"3.expand.0": 72, "3.excite.squeeze": 18, "4.0": 64},
                },
            ),
            ("convnext", {"0": 24, "2.expand": 96, "3.expand": 96}),
            (
                "unet",
                {"first.0": 16, "second.0": 32, "bottom.0": 48, "up2": 32, "join2.0": 32, "up1": 16, "join1.0": 16},
            ),
        ],
    )
    def test_of_convolutions_can_lose_all_their_channels_but_the_outputs(
        self, family: str, expected: dict[str, int]
    ) -> None:
        model = FAMILIES[family].network()
        grouping = proven(model, FAMILIES[family].example(3))
        assert units(grouping) == expected
        assert grouping.left_alone == ()

    @pytest.mark.parametrize("family", ["vit_split_qkv", "vit_fused_qkv", "text_encoder"])
    def test_of_transformers_lose_stream_hidden_width_and_the_same_in_each_head(self, family: str) -> None:
        grouping = proven(FAMILIES[family].network(), FAMILIES[family].example(3))
        found = {group.name: (group.num_units, group.parts) for group in grouping.groups}
        stream = "words" if family == "text_encoder" else "patches"
        heads = {"qkv": (8, 12)} if family == "vit_fused_qkv" else {"query": (8, 4), "value": (8, 4)}
        inside = {"expand": (64, 1), **{f"attention.{name}": size for name, size in heads.items()}}
        layers = (0,) if family == "vit_split_qkv" else (0, 1)
        assert found == {stream: (32, 1)} | {
            f"layers.{n}.{name}": size for n in layers for name, size in inside.items()
        }
        assert grouping.left_alone == ()
        bare = {member.path: member.dim for member in grouping.groups[0].members if member.dim is not None}
        assert bare == ({} if family == "text_encoder" else {"token": 2, "positions": 2})

    @pytest.mark.parametrize("family", ["lstm", "gru"])
    def test_with_recurrent_layers_keep_what_enters_them_by_name(self, family: str) -> None:
        grouping = proven(FAMILIES[family].network(), FAMILIES[family].example(3))
        assert units(grouping) == {"hidden": 32}
        kind = family.upper()
        assert f"recurrent keeps its channels: what happens inside of it ({kind}, `{family}`)" in reasons(grouping)
        assert f"embed keeps its channels: they pass through `recurrent`, a {kind}" in reasons(grouping)


class TestNetworks:
    def test_resnets_padding_is_followed_with_its_offset(self) -> None:
        grouping = of_network(ResNet(depth=8, width=8, shortcut="pad"))
        assert units(grouping) == {"conv1": 8, "layer1.0.conv1": 8, "layer2.0.conv1": 16, "layer3.0.conv1": 32}
        stream = {member.path: member.channels for member in grouping.groups[0].members if member.writes}
        assert stream["layer2.0.conv2"] == tuple(range(4, 12))
        assert stream["layer3.0.conv2"] == tuple(range(12, 20))

    def test_shufflenet_v2_loses_the_widths_inside_its_blocks(self) -> None:
        grouping = of_network(ShuffleNetV2(width=0.5))
        found = units(grouping)
        assert {found[f"layer1.{block}.changed.0"] for block in range(4)} == {24}
        assert {found[f"layer3.{block}.changed.0"] for block in range(4)} == {96}
        assert found["conv2"] == 1024

    def test_vgg_loses_channels_before_its_flattening(self) -> None:
        grouping = of_network(VGG(depth=8, width=0.125), 32)
        assert grouping.left_alone == ()
        assert sum(group.num_channels for group in grouping.groups) == sum(
            module.out_channels
            for module in VGG(depth=8, width=0.125).build((3, 32, 32), 5).modules()
            if isinstance(module, nn.Conv2d)
        )

    def test_the_vit_of_recipes_loses_everything_but_its_heads(self) -> None:
        grouping = of_network(ViT(width=24, depth=1, heads=3, mlp_ratio=2))
        assert {group.name: (group.num_units, group.parts) for group in grouping.groups} == {
            "patches": (24, 1),
            "blocks.0.attention.query": (8, 3),
            "blocks.0.attention.value": (8, 3),
            "blocks.0.expand": (48, 1),
        }


class Sliced(nn.Module):
    """Reads the first and the last channels of its stem in two ways."""

    def __init__(self, first: int, *, adapts: bool) -> None:
        super().__init__()
        self.stem, self.first, self.adapts = nn.Conv2d(1, 16, 3, padding=1), first, adapts
        self.left, self.right = nn.Conv2d(first, 8, 1), nn.Conv2d(16 - first, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        middle = x.shape[1] * self.first // 16 if self.adapts else self.first
        return self.head((self.left(x[:, :middle]) + self.right(x[:, middle:])).mean((2, 3)))


class Attention(nn.Module):
    """torch's own attention over rows, as libraries call it."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.embed, self.qkv, self.project = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.heads, self.scale, self.head = 2, scale, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.project(
            functional.scaled_dot_product_attention(*qkv.unbind(0), scale=self.scale).transpose(1, 2).flatten(2)
        )
        return self.head(x.mean(1))


class OneWay(nn.Module):
    """A layer, something done to its channels, and a layer that reads what is left."""

    def __init__(self, between: Between, read: int = 8) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(4, 8), between, nn.Linear(read, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def unequal(x: Tensor) -> Tensor:
    return cast(Tensor, x.split([3, 5], -1)[1])


def fourier(x: Tensor) -> Tensor:
    return cast(Tensor, torch.fft.rfft(x).real)


NEED_ALL: list[tuple[Between, int, str]] = [
    (lambda x: x.softmax(-1), 8, "`softmax` in the model's own code (softmax) goes over them"),
    (lambda x: x - x.mean(-1, keepdim=True), 8, "`mean` in the model's own code (mean) goes over them"),
    (lambda x: x.cumsum(-1), 8, "`cumsum`"),
    (unequal, 5, "code splits them into parts of unequal sizes"),
    (lambda x: x[..., [1, 0, 3]], 3, "code picks some of them by number (index)"),
    (lambda x: x.roll(1, -1) + torch.ones(8), 8, "they meet a constant of fixed size"),
    (fourier, 5, "whose channels cannot be taken out"),
    (lambda x: x.view(-1, 8) * 2, 8, "the cut network does not run, as where code holds sizes"),
]
"""What is done, how many channels are left, and the reason."""

TREAT_ALIKE: list[Between] = [
    lambda x: functional.pad(x.view(x.shape[0], 1, -1), (0, 0, 1, 1)).sum(1),
    lambda x: torch.stack([x, x.flip(-1)]).amax(0),
    lambda x: functional.glu(torch.cat([x, x], -1)),
    lambda x: x.unsqueeze(1).repeat(1, 3, 1).mean(1),
    lambda x: torch.where(x > 0, x, 0.1 * x).clamp(-1, 1),
]


class TestOperators:
    @pytest.mark.parametrize(
        "norm", [nn.RMSNorm(8), nn.LayerNorm(8, elementwise_affine=False), nn.BatchNorm1d(8)], ids=str
    )
    def test_norms_lose_any_channels(self, norm: nn.Module) -> None:
        grouping = of_module(nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 3)), 4)
        assert units(grouping) == {"0": 8}
        assert reasons(grouping) == ""

    @pytest.mark.parametrize("size", [6, 8], ids=["another width", "as wide as it has channels"])
    def test_a_norm_of_maps_loses_any_channels(self, size: int) -> None:
        pooled = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        grouping = of_module(nn.Sequential(nn.Conv2d(1, 8, 1), NormOfMaps(8), *pooled), 1, size, size)
        assert units(grouping) == {"0": 8}
        assert reasons(grouping) == ""

    @pytest.mark.parametrize(("groups", "expected"), [(4, 2), (1, 8), (8, 8)])
    def test_norms_of_groups_lose_as_many_channels_of_each(self, groups: int, expected: int) -> None:
        pooled = (nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3))
        grouping = of_module(nn.Sequential(nn.Conv1d(1, 8, 1), nn.GroupNorm(groups, 8), *pooled), 1, 5)
        assert units(grouping) == {"0": expected}
        assert reasons(grouping) == ""

    def test_halves_by_slices_that_adapt_lose_the_same_positions(self) -> None:
        grouping = of_module(Sliced(8, adapts=True), 1, 6, 6)
        assert (grouping.groups[0].name, grouping.groups[0].num_units, grouping.groups[0].parts) == ("stem", 8, 2)

    def test_channels_behind_a_slice_of_fixed_size_can_go_and_those_in_it_stay(self) -> None:
        grouping = of_module(Sliced(5, adapts=False), 1, 6, 6)
        assert units(grouping)["stem"] == 11
        assert "stem keeps some of its channels: code takes a slice of fixed size" in reasons(grouping)

    @pytest.mark.parametrize("scale", [None, 0.3])
    def test_attention_makes_up_for_a_scale_that_follows_the_width_and_for_no_other(self, scale: float | None) -> None:
        grouping = of_module(Attention(scale), 5, 8)
        assert units(grouping) == {"embed": 16, "qkv": 8}
        assert any(member.scaled for member in grouping.groups[1].members) == (scale is None)

    @pytest.mark.parametrize(("between", "read", "expected"), NEED_ALL)
    def test_that_need_all_channels_keep_them_and_say_so(self, between: Between, read: int, expected: str) -> None:
        grouping = of_module(OneWay(between, read), 4)
        assert grouping.groups == ()
        assert "first keeps its channels" in reasons(grouping)
        assert expected in reasons(grouping)

    @pytest.mark.parametrize("between", TREAT_ALIKE)
    def test_that_treat_channels_alike_are_followed(self, between: Between) -> None:
        grouping = of_module(OneWay(between), 4)
        assert reasons(grouping) == ""
        assert sum(units(grouping).values()) in {4, 8}

    def test_a_gate_of_one_channel_stays_and_what_it_gates_can_go(self) -> None:
        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.gate, self.last = nn.Linear(4, 8), nn.Linear(4, 1), nn.Linear(8, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.last(self.first(x) * torch.sigmoid(self.gate(x)))

        grouping = of_module(Gated(), 4)
        assert units(grouping) == {"first": 8}
        assert "gate keeps its channels: they scale several channels at once" in reasons(grouping)

    def test_a_model_that_cannot_be_captured_is_refused(self) -> None:
        with pytest.raises(StageError, match=r"no channels can be pruned.* torch.export cannot capture"):
            of_module(OneWay(lambda x: x if float(x.sum()) > 0 else -x), 4)


class OfLibraries(nn.Module):
    """Attention that holds its sizes as attributes, in one of the ways that libraries write it."""

    def __init__(self, *, joined: str) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.all_head_size, self.scale = 3, 4, 12, 0.5
        self.qkv, self.project, self.joined = nn.Linear(12, 36), nn.Linear(12, 12), joined

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        found = (((query * self.scale) @ key.transpose(-2, -1)).softmax(-1) @ value).transpose(1, 2)
        return self.project(found.reshape(batch, tokens, self.all_head_size if self.joined == "attribute" else width))


class NormOfMaps(nn.LayerNorm):
    """A LayerNorm over the channels of maps (N, C, H, W), as libraries of ConvNeXts have it."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OfOneWidth(nn.Module):
    """Attention whose heads' width is one attribute for queries, keys and values, as transformers' encoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.scaling = 4, 0.5
        self.query, self.key, self.value, self.project = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.width)
        query, key, value = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        found = ((query @ key.transpose(-2, -1) * self.scaling).softmax(-1) @ value).transpose(1, 2)
        return self.project(found.reshape(*x.shape[:-1], -1))


class BiasedByHead(nn.Module):
    """Scores with a learned bias for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.bias = 4, nn.Linear(8, 48), nn.Parameter(torch.randn(4, 5, 5))
        self.project = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = query @ key.transpose(-2, -1) + self.bias
        return self.project((scores.softmax(-1) @ value).transpose(1, 2).flatten(2)).mean(1)


class BySums(nn.Module):
    """Attention written in Einstein's notation."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.query, self.key, self.value = 4, nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 16)
        self.project = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
        scores = torch.einsum("bihd,bjhd->bhij", query, key).softmax(-1)
        return self.project(torch.einsum("bhij,bjhd->bihd", scores, value).flatten(2)).mean(1)


def of_heads(model: nn.Module, inputs: Inputs) -> Grouping:
    return trusted(model, channel_groups(model, inputs, set(), heads=True), inputs)


class TestHeads:
    @pytest.mark.parametrize("family", ["vit_fused_qkv", "text_encoder"])
    def test_go_whole_and_the_number_that_code_reads_falls(self, family: str) -> None:
        model = FAMILIES[family].network()
        grouping = of_heads(model, FAMILIES[family].example(3))
        heads = [group for group in grouping.groups if group.heads]
        assert [(group.num_units, group.counted) for group in heads] == [
            (4, (Counted(f"layers.{layer}.attention.heads", 4, 1),)) for layer in (0, 1)
        ]
        pruned, edit = cut(model, kept_channels(model, [(heads[0], [1, 3])]))
        assert pruned.get_submodule("layers.0.attention").heads == 2
        assert edit.attributes == {"layers.0.attention.heads": 2}

    def test_and_widths_are_followed_through_einsteins_sums(self) -> None:
        model = seeded(BySums)
        assert units(proven(model, image(5, 8))) == {"query": 3, "value": 4}
        assert units(of_heads(model, image(5, 8))) == {"query": 4}

    def test_take_a_bias_of_their_own_along(self) -> None:
        model = seeded(BiasedByHead)
        grouping = of_heads(model, image(5, 8))
        (group,) = (group for group in grouping.groups if group.heads)
        assert ("bias", 0) in {(member.path, member.dim) for member in group.members}
        pruned, _ = cut(model, kept_channels(model, [(group, [0])]))
        assert pruned.get_parameter("bias").shape == (3, 5, 5)
        assert "bias keeps its channels: there is one for each head" in reasons(proven(model, image(5, 8)))

    def test_whose_width_is_an_attribute_go_with_it(self) -> None:
        model = seeded(lambda: nn.Sequential(nn.Linear(4, 12), OfLibraries(joined="attribute")))
        (group,) = (group for group in of_heads(model, image(5, 4)).groups if group.heads)
        assert group.counted == (Counted("1.num_heads", 3, 1), Counted("1.all_head_size", 12, 4))
        grouping = proven(model, image(5, 4))
        counted = {group.name: group.counted for group in grouping.groups}
        assert counted["1.qkv"] == (Counted("1.head_dim", 4, 1), Counted("1.all_head_size", 12, 3))

    def test_of_one_width_for_queries_and_values_lose_it_in_both(self) -> None:
        model = seeded(OfOneWidth)
        (group,) = (each for each in proven(model, image(5, 12)).groups if each.counted)
        assert group.counted == (Counted("width", 4, 1),)
        assert set(group.layers) == {"query", "key", "value"}
        pruned, edit = cut(model, kept_channels(model, [(group, [1])]))
        assert edit.attributes == {"width": 3}
        assert {pruned.get_submodule(layer).out_features for layer in group.layers} == {9}

    def test_whose_joined_width_is_that_of_the_stream_stay(self) -> None:
        model = seeded(lambda: nn.Sequential(nn.Linear(4, 12), OfLibraries(joined="stream")))
        for grouping in (of_heads(model, image(5, 4)), proven(model, image(5, 4))):
            assert "1.qkv keeps its channels: the cut network does not run" in reasons(grouping)

    def test_of_a_model_without_attention_change_nothing(self) -> None:
        model, inputs = FAMILIES["unet"].network(), FAMILIES["unet"].example(3)
        assert of_heads(model, inputs) == proven(model, inputs)
