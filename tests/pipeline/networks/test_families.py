"""Facts about every family of built-in networks."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from potstill.export.onnx_file import OnnxMetadata, exported
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.cost import num_parameters
from potstill.pipeline.errors import ModelError
from potstill.pipeline.listing import entries
from potstill.pipeline.models import ModelReference, build, derive, networks
from potstill.pipeline.networks.ds_cnn import DSCNN
from potstill.pipeline.networks.library import LibraryNetwork
from potstill.pipeline.networks.mobilenet_v2 import MobileNetV2
from potstill.pipeline.networks.network import ImageNetwork
from potstill.pipeline.networks.plain import Plain
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.networks.resnet_imagenet import ImageNetResNet
from potstill.pipeline.networks.shufflenet_v1 import ShuffleNetV1
from potstill.pipeline.networks.shufflenet_v2 import ShuffleNetV2
from potstill.pipeline.networks.vgg import VGG
from potstill.pipeline.networks.vit import ViT
from potstill.pipeline.networks.wrn import WideResNet
from potstill.pipeline.taps import Taps

SMALL: tuple[ImageNetwork, ...] = (
    DSCNN(width=8, depth=2),
    MobileNetV2(width=0.25, expansion=2),
    ResNet(depth=8, width=8, stem=16, stride=2),
    ImageNetResNet(width=8),
    Plain(stem=8, stages=((8,), (16, 16))),
    ShuffleNetV1(width=0.2),
    ShuffleNetV2(width=0.5),
    VGG(width=0.125),
    ViT(depth=2, width=16, heads=2),
    WideResNet(depth=10, widen=0.5),
)
"""One that runs in milliseconds of every family."""

FIXED_DEPTH = {"mobilenet_v2", "shufflenet_v1", "shufflenet_v2"}

PUBLISHED = [
    ("resnet", {"depth": 20}, 0.28),
    ("resnet", {"depth": 56}, 0.86),
    ("resnet", {"depth": 110}, 1.74),
    ("resnet", {"depth": 8, "width": 64, "stem": 32}, 1.23),
    ("resnet", {"depth": 32, "width": 64, "stem": 32}, 7.43),
    ("wrn", {"depth": 40, "widen": 2}, 2.26),
    ("wrn", {"depth": 16, "widen": 2}, 0.70),
    ("wrn", {"depth": 40, "widen": 1}, 0.57),
    ("vgg", {"depth": 8}, 3.97),
    ("vgg", {"depth": 13}, 9.46),
    ("mobilenet_v2", {"width": 0.5}, 0.81),
    ("shufflenet_v1", {}, 0.95),
    ("shufflenet_v2", {}, 1.36),
    ("resnet_imagenet", {"depth": 50}, 23.71),
]
"""Millions of parameters for the 100 classes of CIFAR-100, as tables of distillation results give them."""

PUBLISHED_FOR_IMAGENET = [
    ("resnet_imagenet", {"depth": 18, "stem": "large"}, 11_689_512),
    ("resnet_imagenet", {"depth": 34, "stem": "large"}, 21_797_672),
    ("resnet_imagenet", {"depth": 50, "stem": "large"}, 25_557_032),
    ("resnet_imagenet", {"depth": 101, "stem": "large"}, 44_549_160),
    ("resnet_imagenet", {"depth": 152, "stem": "large"}, 60_192_808),
    ("mobilenet_v2", {}, 3_504_872),
    # Without the class token, its position, and the keys' biases, which change nothing: 2 * 192 + 12 * 192.
    ("vit", {"patch": 16, "depth": 12, "width": 192, "heads": 3}, 5_717_416 - 14 * 192),
]


@pytest.fixture(params=SMALL, ids=lambda network: network.name)
def small(request: pytest.FixtureRequest) -> ImageNetwork:
    """The settings of a network that runs in milliseconds."""
    return request.param


@pytest.fixture
def model(small: ImageNetwork) -> nn.Module:
    """That network for images of 3×32×32 and 10 classes, in training mode, its norms' statistics not the first ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = small.build((3, 32, 32), 10)
        built(torch.randn(8, 3, 32, 32))
    return built


class Choice(BaseModel):
    model: ModelReference


def parameters_of(name: str, settings: dict[str, Any], image: tuple[int, int, int], num_classes: int) -> int:
    with torch.device("meta"):
        return num_parameters(networks()[name](**settings).build(image, num_classes))


def seeded(network: ImageNetwork, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.build((3, 16, 16), 5)


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Each module that runs when the model does and holds no others, in that order, once for each run."""
    ran: list[tuple[str, nn.Module]] = []

    def keeper(path: str) -> Callable[..., None]:
        def keep(module: nn.Module, *_: object) -> None:
            ran.append((path, module))

        return keep

    for path, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(keeper(path))
    model.eval()(torch.randn(2, 3, 32, 32))
    return ran


def test_a_small_network_of_every_family_is_tested_here() -> None:
    ours = [
        name
        for name, family in networks().items()
        if issubclass(family, ImageNetwork) and not issubclass(family, LibraryNetwork)
    ]
    assert sorted(each.name for each in SMALL) == ours


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_outputs_are_logits(small: ImageNetwork, channels: int, size: int) -> None:
    model = small.build((channels, size, size), 7).eval()
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize(("name", "settings", "millions"), PUBLISHED)
def test_sizes_are_those_published_for_cifar_100(name: str, settings: dict[str, Any], millions: float) -> None:
    assert round(parameters_of(name, settings, (3, 32, 32), 100) / 1e6, 2) == millions


@pytest.mark.parametrize(("name", "settings", "count"), PUBLISHED_FOR_IMAGENET)
def test_sizes_are_those_published_for_imagenet(name: str, settings: dict[str, Any], count: int) -> None:
    assert parameters_of(name, settings, (3, 224, 224), 1000) == count


def test_half_the_width_is_a_smaller_network_that_runs(small: ImageNetwork) -> None:
    whole = type(small)()
    half = derive(whole, width=0.5)
    assert isinstance(half, type(small))
    model = half.build((3, 16, 16), 5)
    with torch.device("meta"):
        assert num_parameters(model) < 0.6 * num_parameters(whole.build((3, 16, 16), 5))
    assert model.eval()(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    assert type(small).model_validate(half.model_dump()) == half


def test_a_scaled_depth_is_one_that_the_family_takes_or_is_refused(small: ImageNetwork) -> None:
    whole = type(small)()
    if small.name in FIXED_DEPTH:
        with pytest.raises(ModelError, match=f"{small.name} has a fixed number of blocks.*scale its `width` only"):
            derive(whole, depth=0.5)
        return
    for factor in (0.01, 0.5, 1.6, 2.0):
        scaled = derive(whole, depth=factor)
        assert isinstance(scaled, ImageNetwork)
        assert type(small).model_validate(scaled.model_dump()) == scaled
    assert derive(whole, depth=2.0) != whole


def test_factors_of_1_change_nothing(small: ImageNetwork) -> None:
    assert derive(small) == small


def test_gradients_reach_every_parameter(model: nn.Module) -> None:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    nn.functional.cross_entropy(model(images), torch.arange(8)).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert without == []


def test_equal_seeds_give_equal_weights_and_others_do_not(small: ImageNetwork) -> None:
    first, again, other = (seeded(small, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_outputs_do_not_depend_on_the_rest_of_the_batch(model: nn.Module) -> None:
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together, alone = model.eval()(images), model(images[2:3])
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-5)


def test_first_weights_keep_activations_from_vanishing_and_exploding(small: ImageNetwork) -> None:
    with torch.no_grad():
        outputs = seeded(small).train()(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(3)))
    assert 0.1 < float(outputs.std()) < 10


def test_training_mode_changes_no_input_in_place(model: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32)
    before = images.clone()
    model.train()(images)
    assert torch.equal(images, before)


def test_no_module_runs_twice(model: nn.Module) -> None:
    """A tap would only see the last of several runs; so each activation has a module of its own."""
    paths = [path for path, _ in leaves(model)]
    assert len(paths) == len(set(paths))


def test_activations_and_pools_are_modules(model: nn.Module) -> None:
    operators = {
        node.target.__name__.split(".")[0]
        for node in torch.export.export(model.eval(), (torch.randn(2, 3, 32, 32),)).graph.nodes
        if node.op == "call_function"
    }
    modules = {type(module).__name__.lower() for module in model.modules()}
    for activation in operators & {"relu", "gelu", "softmax", "silu", "sigmoid", "tanh"}:
        assert activation in modules
    assert ("hardtanh" in operators or "hardtanh_" in operators) == ("relu6" in modules)
    assert not any(getattr(module, "inplace", False) for module in model.modules())


def test_the_last_layer_is_linear(model: nn.Module) -> None:
    assert isinstance(leaves(model)[-1][1], nn.Linear)


def test_each_stage_is_one_module_of_one_resolution(model: nn.Module) -> None:
    stages = [path for path, _ in model.named_children() if path.startswith(("layer", "blocks"))]
    with Taps(model.eval(), stages) as taps:
        model(torch.randn(2, 3, 32, 32))
    assert list(taps.tensors) == stages
    sizes = [maps.shape[2] for maps in taps.tensors.values() if maps.ndim == 4]
    assert all(after in (before, before // 2) for before, after in pairwise(sizes))


def test_an_artifact_comes_back_from_its_files(model: nn.Module, small: ImageNetwork, tmp_path: Path) -> None:
    blueprint = Blueprint(model=small, input_shapes={"image": (3, 32, 32)}, num_classes=10)
    inputs = {"image": torch.randn(2, 3, 32, 32)}
    Artifact(model=model.eval(), blueprint=blueprint).save(tmp_path, inputs)
    loaded = Artifact.load(tmp_path)
    assert loaded.blueprint == blueprint
    assert type(loaded.blueprint.model) is type(small)
    with torch.no_grad():
        assert torch.equal(loaded.model(*inputs.values()), model(*inputs.values()))


def test_the_exported_file_computes_what_the_network_does(model: nn.Module, small: ImageNetwork) -> None:
    import onnxruntime

    inputs = {"image": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))}
    blueprint = Blueprint(model=small, input_shapes={"image": (3, 32, 32)}, num_classes=10)
    metadata = OnnxMetadata(recipe_hash="", stage="", classes=tuple("abcdefghij"))
    file = exported(Artifact(model=model.eval(), blueprint=blueprint), "fp32", inputs, metadata)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = inputs["image"][:count]
        with torch.no_grad():
            expected = model(images).numpy()
        outputs = np.asarray(session.run(None, {"image": images.numpy()})[0])
        np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_recipe_names_every_family_and_its_settings_survive(small: ImageNetwork) -> None:
    assert Choice.model_validate_json(Choice(model=small).model_dump_json()).model == small
    assert Choice.model_validate_json(f'{{"model": {{"name": "{small.name}"}}}}').model == type(small)()


def test_every_family_is_listed_with_its_paper_and_keys() -> None:
    listed = {entry.name: entry for entry in entries("models")}
    for name, family in networks().items():
        assert ("arXiv:" in listed[name].description) is not issubclass(family, LibraryNetwork)
        assert listed[name].keys == tuple(key for key in family.model_fields if key != "name")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "resnet", "stem": 32, "width": 16, "shortcut": "pad"}, "`shortcut: pad` only adds channels.*conv"),
        ({"name": "wrn", "depth": 15}, "the nearest is 16"),
        ({"name": "wrn", "widen": 0}, "greater than 0"),
        ({"name": "vgg", "depth": 12}, "8, 11, 13, 16 or 19"),
        ({"name": "shufflenet_v2", "width": 0.6}, "0.5, 1, 1.5 or 2; the nearest is 0.5"),
        ({"name": "resnet_imagenet", "stem": "medium"}, "'small' or 'large'"),
        ({"name": "vit", "width": 100, "heads": 3}, "the nearest is 99"),
        ({"name": "mobilenet_v3"}, "mobilenet_v2"),
    ],
)
def test_settings_that_a_family_does_not_have_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Choice.model_validate({"model": settings})


def test_an_image_of_which_pools_leave_nothing_is_refused() -> None:
    four = Plain(stem_kernel=2)
    assert four.build((3, 9, 9), 2).eval()(torch.randn(1, 3, 9, 9)).shape == (1, 2)
    with pytest.raises(ModelError, match="4 stages halve an image of 8x9 3 times, which leaves no pixel"):
        four.build((3, 8, 9), 2)


def test_a_plain_networks_first_filters_hand_on_what_they_are_given() -> None:
    stage = Plain(stem=8, stages=((8, 12), (10,))).build((3, 8, 8), 2).get_submodule("layer1")
    image = torch.rand(2, 8, 8, 8)
    (one, _, _, other, _, _) = stage.children()
    assert torch.equal(one(image), image)
    assert torch.equal(other(image)[:, :8], image)
    assert not torch.equal(other(image)[:, 8:], image[:, :4])


def test_an_image_that_does_not_divide_into_patches_is_refused() -> None:
    with pytest.raises(ModelError, match=r"squares of 4 pixels \(`patch`\), which do not fill images of 16 by 18"):
        build(networks()["vit"](), {"image": (3, 16, 18)}, 2)
