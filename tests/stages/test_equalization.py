"""Facts about cross-layer equalization: which layers are pairs, what it changes, and what it leaves alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.models import build
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.quantization import capture
from potstill.stages.quantization import equalization
from potstill.stages.quantization.equalization import Pair, equalizable, equalize, equalized
from potstill.stages.quantization.folding import fold_batch_norms
from potstill.stages.quantize import Quantize
from potstill.stages.stage import Context

IMAGES = {"image": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection, as in MobileNetV2."""

    def __init__(self, in_channels: int, out_channels: int, activation: Callable[[], nn.Module], stride: int) -> None:
        super().__init__()
        hidden = 4 * in_channels
        self.expand, self.act1 = nn.Conv2d(in_channels, hidden, 1), activation()
        self.depthwise, self.act2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden), activation()
        self.project = nn.Conv2d(hidden, out_channels, 1)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.act2(self.depthwise(self.act1(self.expand(x)))))
        return x + y if self.adds else y


def uneven(model: nn.Module) -> nn.Module:
    """The model with output channels of very different ranges, as batch norms leave when they are folded."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            factor = torch.exp(torch.randn(len(parameter), generator=draws))
            parameter.mul_(factor.view(-1, *(1,) * (parameter.ndim - 1)))
    return model.eval()


def mobile(activation: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return uneven(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1), activation()),
            *(InvertedResidual(8, 8, activation, 1), InvertedResidual(8, 12, activation, 2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
        )
    )


def ranges_of(layer: nn.Module, *, of_inputs: bool = False) -> Tensor:
    weight = layer.get_parameter("weight").detach().abs()
    return weight.transpose(0, 1).flatten(1).amax(1) if of_inputs else weight.flatten(1).amax(1)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.PReLU])
def test_a_mobile_network_computes_the_same_with_its_channels_equalized(activation: Callable[[], nn.Module]) -> None:
    model = mobile(activation)
    pairs = equalizable(capture(model, IMAGES)).pairs
    before = model(IMAGES["image"]).detach()
    weight = model.get_parameter("2.expand.weight").clone()
    equalize(model, pairs)
    assert not torch.equal(model.get_parameter("2.expand.weight"), weight)
    torch.testing.assert_close(model(IMAGES["image"]), before, rtol=1e-4, atol=1e-5)


def test_both_sides_of_a_pair_end_with_the_geometric_mean_of_their_ranges() -> None:
    model = uneven(nn.Sequential(nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 3)))
    mean = (ranges_of(model[0]) * ranges_of(model[2], of_inputs=True)).sqrt()  # type: ignore[index]
    equalize(model, (Pair("0", "2"),))
    torch.testing.assert_close(ranges_of(model[0]), mean)  # type: ignore[index]
    torch.testing.assert_close(ranges_of(model[2], of_inputs=True), mean)  # type: ignore[index]


def test_three_layers_with_a_depthwise_one_between_end_with_their_common_geometric_mean() -> None:
    model = uneven(
        nn.Sequential(
            *(nn.Conv2d(3, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.ReLU()),
            nn.Conv2d(6, 2, 1),
        )
    )
    first, middle, last = (model.get_submodule(path) for path in ("0", "2", "4"))
    mean = (ranges_of(first) * ranges_of(middle) * ranges_of(last, of_inputs=True)) ** (1 / 3)
    pairs = equalizable(capture(model, IMAGES)).pairs
    assert pairs == (Pair("0", "2"), Pair("2", "4"))
    equalize(model, pairs)
    for found in (ranges_of(first), ranges_of(middle), ranges_of(last, of_inputs=True)):
        torch.testing.assert_close(found, mean, rtol=1e-3, atol=0)


def test_no_bias_grows_beyond_the_largest_one_of_its_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        first = model.get_submodule("0")
        first.get_parameter("weight")[1] *= 1e-6
        first.get_parameter("bias").copy_(torch.tensor([0.1, 0.5, -1.0]))
    equalize(model, (Pair("0", "2"),))
    assert float(first.get_parameter("bias").detach()[1].abs()) == pytest.approx(1.0)


def test_a_channel_without_weights_keeps_its_values() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model.get_parameter("0.weight")[1] = 0
    before = model.get_parameter("0.bias").clone(), model.get_parameter("2.weight").clone()
    equalize(model, (Pair("0", "2"),))
    assert torch.equal(model.get_parameter("0.bias")[1], before[0][1])
    assert torch.equal(model.get_parameter("2.weight")[:, 1], before[1][:, 1])


def test_a_factor_of_a_channel_reaches_all_its_pixels_behind_a_flatten() -> None:
    torch.manual_seed(0)
    model = uneven(nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)))
    pairs = equalizable(capture(model, IMAGES)).pairs
    assert pairs == (Pair("0", "3", 16),)
    before = model(IMAGES["image"]).detach()
    equalize(model, pairs)
    torch.testing.assert_close(model(IMAGES["image"]), before, rtol=1e-4, atol=1e-5)


def test_grouped_convolutions_are_scaled_group_by_group() -> None:
    torch.manual_seed(0)
    model = uneven(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4)))
    before = model(IMAGES["image"]).detach()
    equalize(model, equalizable(capture(model, IMAGES)).pairs)
    torch.testing.assert_close(model(IMAGES["image"]), before, rtol=1e-4, atol=1e-5)


def test_the_blocks_of_a_resnet_are_pairs_inside_and_left_alone_at_their_ends() -> None:
    model = build(ResNet(depth=8), {"image": (3, 16, 16)}, 10)
    found = equalizable(capture(fold_batch_norms(model, IMAGES)[0], IMAGES))
    assert found.pairs == tuple(Pair(f"layer{n}.0.conv1", f"layer{n}.0.conv2") for n in (1, 2, 3))
    assert found.left["conv1"] == "its output has several readers"
    assert found.left["layer1.0.conv2"] == "add follows it"
    assert found.left["linear"] == "nothing follows it"


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.second(functional.relu(self.second(functional.relu(self.first(x)))))))


@pytest.mark.parametrize(
    ("model", "layer", "why"),
    [
        (mobile(nn.ReLU6), "2.expand", "hardtanh saturates"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish(), nn.Conv2d(4, 4, 1)), "0", "hardswish follows it"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)), "0", "batch_norm follows it"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(16, 4)), "0", "2 behind it reads along another axis"),
    ],
)
def test_what_a_factor_would_change_is_left_alone_with_the_reason(model: nn.Module, layer: str, why: str) -> None:
    assert why in equalizable(capture(model, IMAGES)).left[layer]


def test_layers_that_run_twice_are_in_no_pair() -> None:
    found = equalizable(capture(Twice(), {"x": torch.randn(3, 4)}))
    assert found.pairs == ()
    assert found.left["first"] == "the weights of second behind it are used more than once"
    assert found.left["second"] == "its weights are used more than once"


def unevenly_scaled() -> nn.Module:
    """Mobile blocks that compute what even ones do, with channels of very different ranges inside."""
    torch.manual_seed(0)
    blocks = [InvertedResidual(8, 8, nn.ReLU, 1) for _ in range(2)]
    with torch.no_grad():
        for block in blocks:
            inner, outer = torch.randn(32).exp(), torch.randn(32).exp()
            for layer, factor in ((block.expand, inner), (block.depthwise, outer)):
                layer.get_parameter("bias").mul_(factor)
                layer.weight.mul_(factor.view(-1, 1, 1, 1))
            block.depthwise.weight.div_(inner.view(-1, 1, 1, 1))
            block.project.weight.div_(outer.view(1, -1, 1, 1))
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), *blocks, *ends).eval()


def test_an_unevenly_scaled_network_loses_less_than_half_as_much_in_int8_once_it_is_equalized(
    new_artifact: Callable[..., Artifact], new_context: Callable[..., Context]
) -> None:
    model, context = unevenly_scaled(), new_context()
    example = context.data.example(64)
    errors: list[float] = []
    for equalize_first in (False, True):
        settings = {"equalize": equalize_first, "weight_bits": 8, "recover": {"epochs": 0}}
        quantized = Quantize.model_validate(settings).run(replace(new_artifact(), model=model), context)
        with torch.no_grad():
            difference = quantized.executable(example)(*example.values()) - model(*example.values())
        errors.append(float(difference.square().mean()) ** 0.5)
    assert errors[1] < 0.5 * errors[0]


def test_an_equalization_that_changes_the_function_is_undone_and_said(
    new_artifact: Callable[..., Artifact], new_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, context = new_artifact(), new_context()
    folded, _ = fold_batch_norms(artifact.model, context.data.example())
    monkeypatch.setattr(equalization, "TOLERANCE", -1.0)
    assert equalized(folded, context) is folded
    assert "undone" in str(context.journal.facts["equalization undone"])


def test_an_equalized_int8_model_is_recorded_and_survives_saving(
    new_artifact: Callable[..., Artifact], new_context: Callable[..., Context]
) -> None:
    artifact, context = new_artifact(), new_context()
    stage = Quantize.model_validate({"equalize": True, "bias_correction": True, "recover": {"epochs": 0}})
    quantized = stage.run(artifact, context)
    assert len(context.journal.facts["equalized pairs"]) == 3  # type: ignore[arg-type]
    quantized.save(context.directory / "saved", context.data.example())
    assert Artifact.load(context.directory / "saved").quantization == quantized.quantization
