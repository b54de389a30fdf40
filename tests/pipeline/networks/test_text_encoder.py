from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.errors import ModelError
from potstill.pipeline.models import build, check_padding, derive
from potstill.pipeline.networks.text_encoder import TextEncoder

SHAPES = {"input_ids": (24,), "attention_mask": (24,)}


def texts(*lengths: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(sum(lengths))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": mask * torch.randint(4, 100, mask.shape, generator=draws), "attention_mask": mask}


def network(norm: Literal["before", "after"] = "before", **settings: int) -> nn.Module:
    torch.manual_seed(0)
    return build(TextEncoder(depth=2, width=16, heads=2, norm=norm, **settings), SHAPES, 3, 100).eval()


@torch.no_grad()
def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    return model(*inputs.values())


@pytest.mark.parametrize("norm", ["before", "after"])
def test_padding_changes_nothing(norm: Literal["before", "after"]) -> None:
    model = network(norm)
    together = texts(5, 24, 9)
    for row, length in enumerate((5, 24, 9)):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in together.items()}
        torch.testing.assert_close(logits(model, together)[row], logits(model, alone)[0], rtol=1e-5, atol=1e-6)
    check_padding(model, together)


def test_a_network_that_padding_changes_is_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(100, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.tokens(input_ids).mean(1)

    with pytest.raises(ModelError, match="of length 5 when it is padded to 24: outputs differ by up to"):
        check_padding(Mean(), texts(5, 24))


def test_the_order_of_tokens_matters() -> None:
    inputs = texts(7)
    turned = {**inputs, "input_ids": inputs["input_ids"].flip(1)}
    assert not torch.allclose(logits(network(), inputs), logits(network(), turned), atol=1e-4)


def test_norms_stand_where_they_were_asked_for() -> None:
    inputs = texts(7)
    assert not torch.allclose(logits(network("before"), inputs), logits(network("after"), inputs), atol=1e-3)


def test_a_student_has_the_heads_and_half_of_the_rest() -> None:
    assert derive(TextEncoder(depth=6, width=256, heads=4), width=0.5, depth=0.34) == TextEncoder(
        depth=2, width=128, heads=4
    )


def test_other_data_than_texts_is_refused() -> None:
    with pytest.raises(ModelError, match=r"takes the tokens of a text.*but the data gives image \(3, 8, 8\)"):
        build(TextEncoder(), {"image": (3, 8, 8)}, 2)
    with pytest.raises(ModelError, match="must know how many tokens there are"):
        build(TextEncoder(), SHAPES, 2)
