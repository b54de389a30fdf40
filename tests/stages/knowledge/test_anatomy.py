"""Facts about what one forward tells of a network."""

from collections.abc import Callable

import pytest
import torch
from nets import Block, ConvHead, Encoder, FlatHead, Hybrid, Plain, PreActivation, anatomy_of
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.taps import outputs_of
from potstill.stages.knowledge.anatomy import Anatomy, LayerError

NewArtifact = Callable[..., Artifact]


def image() -> dict[str, Tensor]:
    return {"image": torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))}


class TestStageEnds:
    def test_are_the_last_modules_of_each_resolution(self, new_artifact: NewArtifact) -> None:
        assert anatomy_of(new_artifact().model).stage_ends() == ["layer1", "layer2", "layer3"]
        assert anatomy_of(Plain()).stage_ends() == ["stage1", "stage2", "stage3"]
        assert anatomy_of(PreActivation()).stage_ends() == ["stage1", "stage2"]

    def test_are_not_the_first_layers_of_the_next_stage(self) -> None:
        class Bottleneck(nn.Module):
            def __init__(self, in_channels: int, channels: int, stride: int) -> None:
                super().__init__()
                self.conv1 = nn.Conv2d(in_channels, 2, 1)
                self.conv2 = nn.Conv2d(2, channels, 3, stride, padding=1)

            def forward(self, x: Tensor) -> Tensor:
                return self.conv2(self.conv1(x))

        backbone = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(Bottleneck(4, 8, 1), Bottleneck(8, 8, 1)),
            nn.Sequential(Bottleneck(8, 8, 2), Bottleneck(8, 8, 1)),
        )
        assert anatomy_of(nn.Sequential(backbone)).stage_ends() == ["0.0.1", "0.1", "0"]

    def test_are_found_in_one_row_of_layers(self) -> None:
        features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        )
        model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        assert anatomy_of(model).stage_ends() == ["0.1", "0"]

    def test_are_not_what_flows_inside_a_transformer(self) -> None:
        assert anatomy_of(Encoder()).stage_ends() == ["patches"]
        assert anatomy_of(Encoder(softmax="dropout")).stage_ends() == ["patches"]

    def test_are_not_what_has_no_row_for_each_sample(self) -> None:
        class Windows(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stage1 = nn.Conv2d(1, 4, 3, 2, padding=1)
                self.inside = nn.Conv2d(4, 4, 3, padding=1)

            def forward(self, image: Tensor) -> Tensor:
                windows = self.stage1(image).reshape(-1, 4, 4, 8)
                return self.inside(windows).reshape(len(image), -1)[:, :4]

        assert anatomy_of(Windows()).stage_ends() == ["stage1"]


class TestBlocks:
    @pytest.mark.parametrize("depth", [1, 2, 5])
    def test_are_a_transformers_and_not_the_layers_inside_them(self, depth: int) -> None:
        anatomy = anatomy_of(Encoder(depth=depth))
        assert anatomy.blocks() == [f"blocks.{number}" for number in range(depth)]
        assert anatomy.ends() == anatomy.blocks()

    def test_are_found_in_pytorchs_own_encoder(self) -> None:
        class Wrapped(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
                self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
                self.head = nn.Linear(16, 4)

            def forward(self, image: Tensor) -> Tensor:
                return self.head(self.encoder(image[:, 0]).mean(1))

        assert anatomy_of(Wrapped()).blocks() == [f"encoder.layers.{number}" for number in range(3)]

    def test_between_convolutions_make_no_transformer(self) -> None:
        anatomy = anatomy_of(Hybrid())
        assert anatomy.blocks() == ["blocks.0", "blocks.1"]
        assert not anatomy.is_transformer()
        assert anatomy.ends() == ["stage1", "stage2"]

    def test_are_none_in_a_convolutional_network(self) -> None:
        assert anatomy_of(Plain()).blocks() == []


class TestAttentions:
    def test_are_what_softmax_modules_return(self) -> None:
        anatomy = anatomy_of(Encoder(depth=2))
        assert anatomy.attentions() == ["blocks.0.attention.softmax", "blocks.1.attention.softmax"]
        assert anatomy.shape(anatomy.attentions()[0]) == (2, 2, 16, 16)

    def test_are_what_a_dropout_is_given_where_the_softmax_is_a_function(self) -> None:
        anatomy = anatomy_of(Encoder(depth=2, softmax="dropout"))
        assert anatomy.attentions() == ["blocks.0.attention.dropout:input", "blocks.1.attention.dropout:input"]

    def test_are_none_where_no_module_shows_them(self) -> None:
        assert anatomy_of(Encoder(softmax="hidden")).attentions() == []
        assert anatomy_of(Plain()).attentions() == []

    def test_scores_go_into_the_softmax(self) -> None:
        model = Encoder(depth=1).eval()
        (tap,) = anatomy_of(model).attentions()
        scores = anatomy_of(model).scores(tap)
        maps = outputs_of(model, image(), [tap, scores]).maps
        torch.testing.assert_close(maps[scores].softmax(-1), maps[tap])

    def test_scores_are_unknown_where_the_softmax_is_a_function(self) -> None:
        anatomy = anatomy_of(Encoder(softmax="dropout"))
        with pytest.raises(LayerError, match="softmax that is no module"):
            anatomy.scores(anatomy.attentions()[0])

    def test_values_are_found_by_name(self) -> None:
        assert anatomy_of(Encoder(depth=2)).values() == ["blocks.0.attention.value", "blocks.1.attention.value"]
        assert anatomy_of(Encoder(depth=1, fused=True)).values() == ["blocks.0.attention.qkv"]


class TestBeforeActivation:
    @pytest.mark.parametrize("relu", ["module", "inplace"])
    def test_is_what_the_activation_is_given(self, relu: str) -> None:
        model = Plain(relu=relu).eval()  # pyright: ignore[reportArgumentType]
        assert anatomy_of(model).before_activation("stage2") == "stage2.relu:input"
        maps = outputs_of(model, image(), ["stage2", "stage2.relu:input"]).maps
        assert (maps["stage2.relu:input"] < 0).any()
        torch.testing.assert_close(maps["stage2.relu:input"].relu(), maps["stage2"])

    def test_of_a_residual_block_is_the_sum(self, new_artifact: NewArtifact) -> None:
        assert anatomy_of(new_artifact().model).before_activation("layer2") == "layer2.0.relu2:input"

    def test_of_a_sum_that_a_later_activation_changes_in_place_holds_the_sum(self) -> None:
        model = PreActivation().eval()
        taps = [anatomy_of(model).before_activation(tap) for tap in ("stage1", "stage2")]
        maps = outputs_of(model, image(), ["stage1", "stage2", *taps]).maps
        for tap, before in zip(("stage1", "stage2"), taps, strict=True):
            assert (maps[before] < 0).any()
            torch.testing.assert_close(maps[before], maps[tap])

    def test_is_unknown_where_the_activation_is_a_function(self) -> None:
        with pytest.raises(LayerError, match=r"no values below zero at `stage2`.*no module"):
            anatomy_of(Plain(relu="function")).before_activation("stage2")


class TestShape:
    def test_is_known_of_outputs_and_inputs(self) -> None:
        anatomy = anatomy_of(Plain(width=4))
        assert anatomy.shape("stage2") == (2, 8, 8, 8)
        assert anatomy.shape("stage2:input") == (2, 4, 16, 16)

    def test_of_an_unknown_layer_names_the_nearest(self) -> None:
        with pytest.raises(LayerError, match=r"no layer `stge2`; did you mean `stage2`\?"):
            anatomy_of(Plain()).shape("stge2:input")

    def test_of_a_layer_without_a_single_tensor_says_so(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gru = nn.GRU(256, 4, batch_first=True)
                self.unused = nn.Linear(4, 4)

            def forward(self, image: Tensor) -> Tensor:
                return self.gru(image.flatten(2))[0][:, 0]

        with pytest.raises(LayerError, match="`gru`, but it does not return one tensor"):
            anatomy_of(Two()).shape("gru")
        with pytest.raises(LayerError, match="`unused`, but it is not given one tensor"):
            anatomy_of(Two()).shape("unused:input")


class TestMatching:
    def test_is_in_running_order_and_stays_within_one_part_of_a_path(self) -> None:
        anatomy = anatomy_of(Plain())
        assert anatomy.matching("stage*") == ["stage1", "stage2", "stage3"]
        assert anatomy.matching("stage[23].relu") == ["stage2.relu", "stage3.relu"]

    def test_keeps_the_side_of_the_modules(self) -> None:
        assert anatomy_of(Plain()).matching("stage?:input") == ["stage1:input", "stage2:input", "stage3:input"]

    def test_of_nothing_names_the_nearest(self) -> None:
        with pytest.raises(LayerError, match=r"no layer `stages1`; did you mean `stage1`\?"):
            anatomy_of(Plain()).matching("stages1")


class TestHead:
    def test_is_the_linear_layer_that_gives_the_logits(self) -> None:
        for model in (Plain(), FlatHead(), Encoder(), Encoder(class_token=True)):
            anatomy = anatomy_of(model)
            assert (anatomy.head(), anatomy.features()) == ("head", "head:input")

    def test_is_no_layer_that_only_has_as_many_outputs(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.Tanh())
        with pytest.raises(LayerError, match="does not end in a linear layer"):
            anatomy_of(model).head()

    def test_is_none_where_a_convolution_gives_the_logits(self) -> None:
        with pytest.raises(LayerError, match="does not end in a linear layer"):
            anatomy_of(ConvHead()).head()


class TestLastMap:
    def test_has_the_features_as_its_means(self, new_artifact: NewArtifact) -> None:
        for model, last in ((new_artifact().model, "layer3"), (Plain(), "stage3"), (Plain(relu="inplace"), "stage3")):
            anatomy = anatomy_of(model)
            assert anatomy.last_map() == last
            maps = anatomy.look([last, anatomy.features()]).maps
            torch.testing.assert_close(maps[last].mean((2, 3)), maps[anatomy.features()])

    def test_is_not_what_an_activation_changes_afterwards(self) -> None:
        """The mean is of the values after an activation in place, which no module gives."""
        with pytest.raises(LayerError, match="does not end in maps"):
            anatomy_of(PreActivation()).last_map()

    def test_is_none_where_the_head_stands_on_something_else(self) -> None:
        for model in (FlatHead(), Encoder()):
            with pytest.raises(LayerError, match="does not end in maps"):
                anatomy_of(model).last_map()

    def test_may_be_a_grid_of_tokens(self) -> None:
        assert anatomy_of(Encoder()).last_map(grids=True) == "norm"
        with pytest.raises(LayerError, match="does not end in maps"):
            anatomy_of(Encoder(class_token=True)).last_map(grids=True)


class TestAnatomy:
    def test_leaves_the_model_as_it_was(self) -> None:
        model = Plain().train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        Anatomy(model, image())
        assert model.training
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, before[name])

    def test_knows_the_number_of_classes(self) -> None:
        assert anatomy_of(Plain()).num_classes == 4

    def test_a_block_alone_is_no_network_of_maps(self) -> None:
        model = nn.Sequential(nn.Flatten(1, 2), Block(16, 2, "module", fused=False))
        assert anatomy_of(model).stage_ends() == []


class TestBatchNorm:
    def test_is_the_one_before_an_activation(self) -> None:
        assert anatomy_of(Plain()).batch_norm("stage2.relu:input") == "stage2.norm"
        assert anatomy_of(Plain(relu="inplace")).batch_norm("stage2.relu:input") == "stage2.norm"
        assert anatomy_of(Plain()).batch_norm("stage2.norm") == "stage2.norm"

    def test_is_none_where_something_else_gives_the_values(self, new_artifact: NewArtifact) -> None:
        assert anatomy_of(Plain()).batch_norm("stage2.relu") is None
        residual = anatomy_of(new_artifact().model)
        assert residual.batch_norm(residual.before_activation("layer2")) is None

    def test_is_none_where_a_sum_in_place_changes_its_output(self) -> None:
        class Residual(Plain):
            def forward(self, image: Tensor) -> Tensor:
                maps = self.stage1.norm(self.stage1.conv(image))
                maps += image
                return self.head(self.pool(self.stage3(self.stage2(self.stage1.relu(maps)))).flatten(1))

        anatomy = anatomy_of(Residual(relu="inplace"))
        assert anatomy.batch_norm("stage1.relu:input") is None
        assert anatomy.batch_norm("stage2.relu:input") == "stage2.norm"
