"""Similarity-preserving distillation."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import Comparison, LayerMethod, Term
from ..pair import Pair


class Similarities(LayerMethod, frozen=True, extra="forbid"):
    """Which samples of a batch excite a layer alike, by the products of their maps."""

    kind = "relation"
    source = "SP, Tung & Mori 2019, arXiv 1907.09682"

    weight: Annotated[float, Field(gt=0)] = 3000.0
    """Of the mean over the layers; the paper adds the layers up, and popular code takes the last alone."""

    def term(self, pair: Pair) -> Term:
        """For layers of any kind and size, since samples are compared within each network."""
        return Comparison(pair.matches(self.layers), similarity_distance)


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """‖G_s - G_t‖²_F / B², where G is A·Aᵀ with rows of length 1 and A the layer as (B, D); (B, …) in, a scalar out.

    Tung & Mori 2019, section 3.
    """
    return (similarities(student) - similarities(teacher)).square().mean()


def similarities(layer: Tensor) -> Tensor:
    """Products of the samples (B, …), each row of (B, B) scaled to length 1."""
    rows = layer.flatten(1)
    return functional.normalize(rows @ rows.T, dim=1)
