"""Facts about attention and SiLUs that a captured graph would hold as one operator."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from potstill.pipeline.quantization import capture, operator_name
from potstill.stages.quantization.placement import place

ONE_OPERATOR = "scaled_dot_product_attention"


class Attention(nn.Module):
    """Two heads over eight numbers; the last of them masks keys where the settings ask for it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.linear, self.settings = nn.Linear(8, 24), settings

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.linear(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        settings: dict[str, Any] = {name: make(x) if callable(make) else make for name, make in self.settings.items()}
        return functional.scaled_dot_product_attention(query, key, value, **settings)


def first_or_positive(x: Tensor) -> Tensor:
    """A mask that lets each key be seen whose last number is above zero, and the first one always."""
    first = torch.arange(x.shape[1]) == 0
    return ((x[..., -1] > 0) | first)[:, None, None, :]


def last_number(x: Tensor) -> Tensor:
    """A mask that adds it to each key's scores."""
    return x[:, None, None, :, -1]


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "mask of booleans": {"attn_mask": first_or_positive},
    "mask to add": {"attn_mask": last_number},
}


def operators(model: nn.Module, x: Tensor) -> list[str]:
    return [operator_name(node) for node in capture(model, {"x": x}).graph.nodes]


@pytest.mark.parametrize("settings", SETTINGS)
def test_attention_written_out_equals_the_one_operator(settings: str) -> None:
    torch.manual_seed(0)
    model, x = Attention(**SETTINGS[settings]).eval(), torch.randn(3, 6, 8)
    written_out = operators(model, x)
    assert ONE_OPERATOR not in written_out
    assert written_out.count("matmul") == 2
    with torch.no_grad():
        assert torch.allclose(capture(model, {"x": x})(x), model(x), atol=1e-6)


def test_attention_that_drops_weights_or_repeats_keys_stays_one_operator() -> None:
    x = torch.randn(3, 6, 8)
    assert ONE_OPERATOR in operators(Attention(dropout_p=0.5), x)
    assert ONE_OPERATOR in operators(Attention(enable_gqa=True), x)


@pytest.mark.parametrize("settings", SETTINGS)
def test_both_products_are_quantized_and_what_is_between_them_is_not(settings: str) -> None:
    graph = capture(Attention(**SETTINGS[settings]), {"x": torch.randn(3, 6, 8)})
    assert place(graph).activations == ("input:0", "linear:linear", ":softmax")


def test_both_products_of_multihead_attention_are_quantized() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    found = place(capture(Model(), {"x": torch.randn(3, 6, 8)})).activations
    assert {"attention:linear", "attention:softmax", "attention:matmul#1"} <= set(found)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_silu_written_out_equals_the_one_operator_and_is_quantized_inside(inplace: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(inplace=inplace)).eval(), torch.randn(2, 3, 5, 5)
    graph = capture(model, {"x": x})
    assert [operator_name(node) for node in graph.graph.nodes if operator_name(node)] == ["conv2d", "sigmoid", "mul"]
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))
    assert place(graph).activations == ("input:0", "0:conv2d", "1:sigmoid", "1:mul")
