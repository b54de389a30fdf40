"""Facts about blueprints: what an edit makes of a layer, and what does not fit."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from potstill.pipeline.blueprint import (
    Blueprint,
    Factorize,
    Factors,
    FoldBatchNorm,
    LayerSize,
    Resize,
    factored,
)
from potstill.pipeline.errors import ArtifactError
from potstill.pipeline.models import BuiltInModel


def blueprint(*edits: Any) -> Blueprint:
    model = BuiltInModel(name="resnet", depth=8, width=8)
    return Blueprint(model=model, input_shapes={"image": (1, 16, 16)}, num_classes=4, edits=edits)


class TestResize:
    def test_a_layer_changes_its_size_and_nothing_else(self) -> None:
        layer = nn.Conv2d(8, 16, (3, 1), stride=2, padding=(1, 0), dilation=2, bias=False, padding_mode="reflect")
        model = nn.Sequential(layer)
        Resize(layers={"0": LayerSize(in_channels=4, out_channels=12)}).apply(model)
        resized = model[0]
        assert isinstance(resized, nn.Conv2d)
        assert resized.weight.shape == (12, 4, 3, 1)
        for setting in ("kernel_size", "stride", "padding", "dilation", "bias", "padding_mode"):
            assert getattr(resized, setting) == getattr(layer, setting)
        same = nn.Conv2d(4, 12, (3, 1), stride=2, padding=(1, 0), dilation=2, bias=False, padding_mode="reflect")
        same.load_state_dict(resized.state_dict())
        inputs = torch.randn(2, 4, 9, 9)
        assert torch.equal(resized(inputs), same(inputs))

    def test_a_depthwise_layer_keeps_one_group_a_channel(self) -> None:
        model = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16))
        Resize(layers={"0": LayerSize(in_channels=8, out_channels=8, groups=8)}).apply(model)
        assert model[0].weight.shape == (8, 1, 3, 3)
        assert model(torch.randn(1, 8, 5, 5)).shape == (1, 8, 3, 3)

    def test_a_norm_keeps_its_settings(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(16, eps=0.5, momentum=0.2))
        Resize(layers={"0": LayerSize(in_channels=0, out_channels=8)}).apply(model)
        norm = model[0]
        assert isinstance(norm, nn.BatchNorm2d)
        assert (norm.num_features, norm.eps, norm.momentum) == (8, 0.5, 0.2)
        assert {name: tuple(tensor.shape) for name, tensor in norm.state_dict().items()} == {
            "weight": (8,),
            "bias": (8,),
            "running_mean": (8,),
            "running_var": (8,),
            "num_batches_tracked": (),
        }

    def test_a_module_without_channels_is_refused(self) -> None:
        with pytest.raises(ArtifactError, match="`relu`, a ReLU"):
            blueprint(Resize(layers={"relu": LayerSize(in_channels=8, out_channels=8)})).build()


class TestFactored:
    def test_the_bias_is_in_the_last_factor_and_the_stride_in_the_spatial_one(self) -> None:
        layer = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        first, core, last = factored(layer, Factors(kind="tucker2", ranks=(4, 8)), "layer")
        assert [tuple(part.weight.shape) for part in (first, core, last)] == [
            (4, 16, 1, 1),
            (8, 4, 3, 3),
            (24, 8, 1, 1),
        ]
        assert [part.stride for part in (first, core, last)] == [(1, 1), (2, 2), (1, 1)]
        assert [part.bias is not None for part in (first, core, last)] == [False, False, True]

    @pytest.mark.parametrize("ranks", [(16, 8), (4, 24), (16, 24)])
    def test_a_full_rank_needs_no_factor(self, ranks: tuple[int, int]) -> None:
        parts = factored(nn.Conv2d(16, 24, 3), Factors(kind="tucker2", ranks=ranks), "layer")
        assert len(parts) == 1 + (ranks[0] < 16) + (ranks[1] < 24)
        assert [part.bias is not None for part in parts] == [False] * (len(parts) - 1) + [True]

    def test_a_kind_that_is_not_for_the_layer_is_refused(self) -> None:
        with pytest.raises(ArtifactError, match="`layer`, a Linear, by tucker2"):
            factored(nn.Linear(4, 4), Factors(kind="tucker2", ranks=(2, 2)), "layer")


class TestBlueprint:
    def test_edits_are_applied_in_their_order(self) -> None:
        folded_then_factorized = blueprint(
            FoldBatchNorm(layers={"conv1": "bn1"}),
            Resize(
                layers={
                    "layer1.0.conv1": LayerSize(in_channels=8, out_channels=4),
                    "layer1.0.bn1": LayerSize(in_channels=0, out_channels=4),
                    "layer1.0.conv2": LayerSize(in_channels=4, out_channels=8),
                }
            ),
            Factorize(layers={"layer1.0.conv2": Factors(kind="tucker2", ranks=(2, 3))}),
        )
        model = folded_then_factorized.build()
        assert isinstance(model.get_submodule("bn1"), nn.Identity)
        assert model.get_parameter("conv1.bias").shape == (8,)
        assert model.get_parameter("layer1.0.conv2.0.weight").shape == (2, 4, 1, 1)
        assert model(torch.randn(3, 1, 16, 16)).shape == (3, 4)

    def test_it_comes_back_from_json_as_it_was(self) -> None:
        original = blueprint().with_edit(Factorize(layers={"linear": Factors(kind="svd", ranks=(2,))}))
        assert Blueprint.model_validate_json(original.model_dump_json()) == original

    def test_an_edit_of_a_layer_that_is_gone_says_that_the_code_has_changed(self) -> None:
        with pytest.raises(ArtifactError, match=r"`layer9\.conv`.*code of the model has changed"):
            blueprint(Factorize(layers={"layer9.conv": Factors(kind="svd", ranks=(2,))})).build()

    def test_an_unknown_edit_is_refused(self) -> None:
        text = blueprint().model_dump_json().replace('"edits":[]', '"edits":[{"edit":"shrink","layers":{}}]')
        with pytest.raises(ValidationError, match="shrink"):
            Blueprint.model_validate_json(text)
