"""Facts about blueprints: edits change the structure only, compose, and refuse what they do not fit."""

from typing import Any

import pytest
import torch
from torch import nn

from potstill.pipeline.blueprint import (
    Blueprint,
    Factorize,
    FoldBatchNorm,
    LayerSize,
    Resize,
    layer_sizes,
    size_of,
)
from potstill.pipeline.errors import ArtifactError
from potstill.pipeline.factors import Factors, factored
from potstill.pipeline.networks.resnet import ResNet

BLUEPRINT = Blueprint(model=ResNet(depth=8, width=8), input_shapes={"image": (1, 8, 8)}, num_classes=4)
FACTORIZE = Factorize(layers={"layer3.0.conv1": Factors(kind="tucker2", ranks=(8, 16))})
IMAGE = torch.zeros(2, 1, 8, 8)


class TestEdits:
    def test_compose_in_the_order_they_were_made(self) -> None:
        fold = FoldBatchNorm(layers={"layer3.0.conv1.2": "layer3.0.bn1"})
        resize = Resize(
            layers={
                "layer3.0.conv1.0": LayerSize(in_channels=16, out_channels=4),
                "layer3.0.conv1.1": LayerSize(in_channels=4, out_channels=16),
                "layer3.0.conv1.2": LayerSize(in_channels=16, out_channels=24),
                "layer3.0.conv2": LayerSize(in_channels=24, out_channels=32),
            }
        )
        blueprint = BLUEPRINT.with_edit(FACTORIZE).with_edit(fold).with_edit(resize)
        model = blueprint.build().eval()
        assert model(IMAGE).shape == (2, 4)
        assert isinstance(model.get_submodule("layer3.0.bn1"), nn.Identity)
        assert model.state_dict()["layer3.0.conv1.2.bias"].shape == (24,)

    def test_survive_json(self) -> None:
        blueprint = BLUEPRINT.with_edit(FACTORIZE)
        assert Blueprint.model_validate_json(blueprint.model_dump_json()) == blueprint

    def test_leave_the_blueprint_they_were_added_to_as_it_was(self) -> None:
        BLUEPRINT.with_edit(FACTORIZE)
        assert BLUEPRINT.edits == ()

    @pytest.mark.parametrize(
        ("edit", "named"),
        [
            (Resize(layers={"layer9.conv1": LayerSize(in_channels=1, out_channels=1)}), "layer9.conv1"),
            (Resize(layers={"relu": LayerSize(in_channels=1, out_channels=1)}), "`relu`, a ReLU"),
            (Factorize(layers={"bn1": Factors(kind="svd", ranks=(2,))}), "`bn1`, a BatchNorm2d"),
            (Factorize(layers={"conv1": Factors(kind="svd", ranks=(2,))}), "`conv1`, a Conv2d"),
            (Factorize(layers={"linear": Factors(kind="tucker2", ranks=(2, 2))}), "`linear`, a Linear"),
            (Resize(layers={}, tensors={"token": (1, 1, 8)}), "`token`, which the model does not have"),
            (Resize(layers={}, tensors={"conv1.stride": (1,)}), "`conv1.stride`"),
            (Resize(layers={}, attributes={"attention.heads": 2}), "a layer `attention`"),
            (Resize(layers={}, attributes={"layer1.heads": 2}), "`layer1.heads`, which the model does not have"),
            (FoldBatchNorm(layers={"conv1": "bn7"}), "bn7"),
            (FoldBatchNorm(layers={"conv1": "relu"}), "`relu`, a ReLU"),
            (FoldBatchNorm(layers={"relu": "bn1"}), "`relu`, a ReLU"),
        ],
    )
    def test_that_do_not_fit_the_model_are_named(self, edit: Any, named: str) -> None:
        with pytest.raises(ArtifactError, match=named):
            BLUEPRINT.with_edit(edit).build()


class TestResizing:
    @pytest.mark.parametrize(
        ("layer", "size", "sample"),
        [
            (
                nn.Conv2d(8, 8, 3, 2, 1, 2, groups=2, padding_mode="reflect"),
                LayerSize(in_channels=4, out_channels=6, groups=2),
                (2, 4, 9, 9),
            ),
            (nn.Conv1d(8, 8, 3, bias=False), LayerSize(in_channels=4, out_channels=6), (2, 4, 9)),
            (
                nn.ConvTranspose2d(8, 8, 3, 2, output_padding=1, groups=4),
                LayerSize(in_channels=4, out_channels=6, groups=2),
                (2, 4, 5, 5),
            ),
            (nn.Linear(8, 8), LayerSize(in_channels=4, out_channels=6), (2, 4)),
            (nn.BatchNorm2d(8, eps=0.1, affine=False), LayerSize(in_channels=0, out_channels=6), (2, 6, 3, 3)),
            (nn.InstanceNorm1d(8, affine=True), LayerSize(in_channels=0, out_channels=6), (2, 6, 3)),
            (nn.PReLU(8), LayerSize(in_channels=0, out_channels=6), (2, 6, 3)),
            (nn.LayerNorm(8, eps=0.1), LayerSize(in_channels=0, out_channels=6), (2, 6)),
            (nn.LayerNorm(8, elementwise_affine=False), LayerSize(in_channels=0, out_channels=6), (2, 6)),
            (nn.RMSNorm(8), LayerSize(in_channels=0, out_channels=6), (2, 6)),
            (nn.Embedding(5, 8, padding_idx=0), LayerSize(in_channels=0, out_channels=6), (2,)),
        ],
    )
    def test_keeps_every_other_setting(self, layer: nn.Module, size: LayerSize, sample: tuple[int, ...]) -> None:
        model = nn.Sequential(layer)
        Resize(layers={"0": size}).apply(model)
        resized = model[0]
        assert layer_sizes(model) == {"0": size}
        assert type(resized) is type(layer)
        inputs = torch.zeros(sample, dtype=torch.long if isinstance(layer, nn.Embedding) else torch.float)
        assert resized(inputs).shape[1] == 6
        sizes = {
            "in_channels",
            "out_channels",
            "groups",
            "in_features",
            "out_features",
            "num_features",
            "num_parameters",
            "normalized_shape",
            "embedding_dim",
        }
        for name, value in vars(layer).items():
            if not name.startswith("_") and name not in sizes:
                assert getattr(resized, name) == value

    def test_is_not_for_layers_whose_tensors_have_other_names(self) -> None:
        assert size_of(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))) is None
        assert size_of(nn.LayerNorm([4, 4])) is None


class TestResizingOutsideOfLayers:
    def test_parameters_and_buffers_keep_what_they_are(self) -> None:
        model = nn.Module()
        model.token = nn.Parameter(torch.ones(1, 8))
        model.register_buffer("places", torch.ones(4, 8))
        Resize(layers={}, tensors={"token": (1, 6), "places": (4, 6)}).apply(model)
        assert {name: tuple(each.shape) for name, each in model.named_parameters()} == {"token": (1, 6)}
        assert {name: tuple(each.shape) for name, each in model.named_buffers()} == {"places": (4, 6)}

    def test_integers_are_set_where_code_reads_them(self) -> None:
        model = nn.MultiheadAttention(8, 4)
        Resize(layers={}, attributes={"num_heads": 2}).apply(model)
        assert model.num_heads == 2

    def test_edits_of_earlier_versions_load(self) -> None:
        assert Resize.model_validate({"edit": "resize", "layers": {}}) == Resize(layers={})


class TestFactored:
    def test_bias_comes_last_and_stride_at_the_core(self) -> None:
        layer = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        first, core, last = factored(layer, Factors(kind="tucker2", ranks=(8, 8)), "layer")
        assert (first.stride, core.stride, last.stride) == ((1, 1), (2, 2), (1, 1))
        assert (first.bias, core.bias) == (None, None)
        assert last.bias is not None

    def test_a_full_rank_has_no_factor(self) -> None:
        layer = nn.Conv2d(16, 32, 3)
        assert len(factored(layer, Factors(kind="tucker2", ranks=(16, 8)), "layer")) == 2
        (core,) = factored(layer, Factors(kind="tucker2", ranks=(16, 32)), "layer")
        assert core.bias is not None
