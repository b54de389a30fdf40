"""Facts about weights that share the values of a codebook."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.errors import ArtifactError
from potstill.pipeline.sharing import (
    Cluster,
    Codebook,
    SharedWeight,
    codebook_of,
    packed,
    plain,
    share,
    shared_weights,
    unpacked,
)

NUMBERS = torch.tensor([0, 1, 2, 2, 1, 0, 3, 3, 3, 0, 1, 2])


def shared_linear(*, zero: bool = False) -> nn.Linear:
    """Three outputs of four inputs each, whose weights are -1, 0, 1 and 2."""
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_((NUMBERS.float() if zero else NUMBERS.float() - 1).view(3, 4))
    share(layer, SharedWeight(layer.weight.shape, Codebook(clusters=4, zero=zero), NUMBERS))
    return layer


class TestPacking:
    @given(bits=st.integers(1, 8), count=st.integers(0, 70), seed=st.integers(0, 99))
    @settings(max_examples=60, deadline=None)
    def test_gives_back_every_number(self, bits: int, count: int, seed: int) -> None:
        numbers = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(unpacked(packed(numbers, bits), count, bits), numbers)

    @pytest.mark.parametrize(("bits", "bytes_"), [(1, 12), (2, 24), (3, 36), (4, 48), (5, 60), (7, 84), (8, 96)])
    def test_takes_as_many_bits_as_it_says(self, bits: int, bytes_: int) -> None:
        assert len(packed(torch.zeros(96, dtype=torch.int64), bits)) == bytes_
        assert Codebook(clusters=2**bits).stored_bytes(96) == bytes_ + 4 * 2**bits


class TestSharedWeight:
    def test_is_what_the_layer_had_where_that_takes_few_values(self) -> None:
        layer = shared_linear()
        torch.testing.assert_close(layer.weight, (NUMBERS.float() - 1).view(3, 4))
        torch.testing.assert_close(codebook_of(layer), torch.tensor([-1.0, 0.0, 1.0, 2.0]))

    def test_steps_as_its_weights_would_projected_on_those_that_share(self) -> None:
        layer, gradient = shared_linear(), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        before = layer.weight.detach().clone()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        (layer.weight * gradient).sum().backward()
        optimizer.step()
        means = torch.stack([gradient.flatten()[number == NUMBERS].mean() for number in range(4)])
        torch.testing.assert_close(before - layer.weight.detach(), 0.1 * means[NUMBERS].view(3, 4))

    def test_keeps_its_zeros_whatever_is_trained(self) -> None:
        layer = shared_linear(zero=True)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(1.0)
        assert torch.equal(layer.weight == 0, (NUMBERS == 0).view(3, 4))
        assert codebook_of(layer)[0] == 0

    def test_a_plain_copy_computes_the_same_with_ordinary_layers(self) -> None:
        model = nn.Sequential(shared_linear(), nn.ReLU(), shared_linear(zero=True).requires_grad_(False))[:2]
        inputs = torch.rand(5, 4)
        copy = plain(model)
        assert type(copy[0]) is nn.Linear  # pyright: ignore[reportIndexIssue]
        assert isinstance(dict(copy.named_parameters())["0.weight"], nn.Parameter)
        assert torch.equal(copy(inputs), model(inputs))
        assert list(shared_weights(model)) == ["0"]
        assert shared_weights(copy) == {}
        assert plain(copy) is copy


class TestCluster:
    def test_rebuilds_and_reloads_bit_equal(self, new_artifact: Callable[..., Artifact]) -> None:
        model = new_artifact().model
        edit = Cluster(layers={"layer3.0.conv1": Codebook(clusters=12), "linear": Codebook(clusters=4, zero=True)})
        edit.apply(model)
        blueprint = new_artifact().blueprint.with_edit(edit)
        again = Blueprint.model_validate_json(blueprint.model_dump_json()).build().eval()
        again.load_state_dict(model.state_dict())
        image = torch.rand(2, 1, 16, 16)
        assert torch.equal(again(image), model(image))

    def test_refuses_a_layer_without_a_weight_of_its_own(self, new_artifact: Callable[..., Artifact]) -> None:
        model, edit = new_artifact().model, Cluster(layers={"linear": Codebook(clusters=4)})
        edit.apply(model)
        with pytest.raises(ArtifactError, match="`linear`, a ParametrizedLinear, share values"):
            edit.apply(model)
        with pytest.raises(ArtifactError, match="a layer `gone` that the model does not have"):
            Cluster(layers={"gone": Codebook(clusters=4)}).apply(model)
        with pytest.raises(ArtifactError, match="has no weight of its own"):
            Cluster(layers={"layer1": Codebook(clusters=4)}).apply(model)


def test_a_change_of_a_plain_copy_does_not_reach_the_original() -> None:
    layer = shared_linear()
    copy = plain(nn.Sequential(layer))
    with torch.no_grad():
        next(iter(copy.parameters())).add_(1)
    weight: Tensor = layer.weight
    torch.testing.assert_close(weight, (NUMBERS.float() - 1).view(3, 4))
