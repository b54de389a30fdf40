"""Asking the engine, layer by layer, whether factors pay."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..layer_engines import Form, beside_layers
from ..stage import Context
from .layers import Plan


def confirmed(model: nn.Module, candidates: Sequence[Plan], context: Context) -> list[Plan]:
    """The plans, those of them kept whole whose factors' engine is not faster than the layer's own beyond noise."""
    forms = [_form(plan) for plan in candidates if plan.pays]
    found = beside_layers(model, forms, "factors", context)
    judged: list[Plan] = []
    for plan in candidates:
        beside = found.get(plan.path)
        if beside is not None:
            reason = None if beside.verdict == "faster" else f"the engine of its factors: {beside}"
            plan = replace(plan, kept_because=reason, engine=str(beside))
        judged.append(plan)
    return judged


def _form(plan: Plan) -> Form:
    return Form(plan.path, repr(plan.factors), plan.sequence)
