"""Which convolutions get compact filters, and what that saves."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from ...pipeline.compact_filters import CompactFilter, compacted
from ...pipeline.cost import macs_by_layer
from ...pipeline.data import Batch
from ...pipeline.errors import StageError
from ..judgement import judged
from ..layer_engines import Form, beside_layers
from ..pruning.selection import ignored_paths, shared_paths
from ..stage import Context


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would become of one convolution, and what it would cost for one sample."""

    path: str
    filters: CompactFilter
    macs_before: int
    macs_after: int
    kept_because: str | None = None
    """Why the layer stays dense; None where it gets compact filters."""
    fit_error: float | None = None
    """The share of the squares of the layer's outputs that its fitted compact form misses."""
    loss_rise: float | None = None
    """The mean loss on training samples above that of the whole model, with this layer's compact form alone."""
    engine: str | None = None
    """How the compact form's engine did beside the layer's own, in words; None where it was not timed."""

    @property
    def is_compacted(self) -> bool:
        """Whether the layer gets compact filters."""
        return self.kept_because is None

    @property
    def price(self) -> float:
        """The rise of the loss for each multiply-accumulate saved; where the loss falls, the fall alone."""
        assert self.loss_rise is not None
        return self.loss_rise / (self.macs_before - self.macs_after) if self.loss_rise > 0 else self.loss_rise

    def kept(self, reason: str) -> "Plan":
        """The same layer, dense."""
        return replace(self, kept_because=reason)

    def fact(self) -> dict[str, Any]:
        """What the report says about the layer."""
        measured = {"fit_error": self.fit_error, "loss_rise": self.loss_rise, "engine": self.engine}
        return {
            "path": self.path,
            "macs_before": self.macs_before,
            "macs_after": self.macs_after if self.is_compacted else self.macs_before,
            **{name: value for name, value in measured.items() if value is not None},
            "decision": "compacted" if self.is_compacted else f"kept: {self.kept_because}",
        }


def plans(model: nn.Module, filters: CompactFilter, inputs: Mapping[str, Tensor], ignore: Sequence[str]) -> list[Plan]:
    """A plan for every 2-d convolution that runs, in the model's order.

    Raises StageError where an `ignore` pattern matches nothing, or the model does not run with compact filters.
    """
    before, ignored, shared = macs_by_layer(model, inputs), ignored_paths(model, ignore), shared_paths(model)
    found: list[Plan] = []
    for path, layer in cast(Iterable[tuple[str, nn.Module]], model.named_modules()):
        if isinstance(layer, nn.Conv2d) and path in before:
            reason = "named in `ignore`" if path in ignored else _reason_to_keep(layer, filters, path in shared)
            found.append(Plan(path=path, filters=filters, macs_before=before[path], macs_after=0, kept_because=reason))
    return _with_costs(model, found, inputs)


def _reason_to_keep(layer: nn.Conv2d, filters: CompactFilter, is_shared: bool) -> str | None:
    if type(layer) is not nn.Conv2d:
        return f"is a {type(layer).__name__}, whose own code may do more than convolve"
    if is_shared:
        return "shares its weight with another layer"
    if layer.groups > 1:
        return "is depthwise" if layer.groups == layer.in_channels else "is grouped already"
    if set(layer.kernel_size) == {1}:
        return "is a 1×1 convolution"
    if filters.kind == "grouped" and (layer.in_channels % filters.number or layer.out_channels % filters.number):
        return f"its {layer.in_channels} to {layer.out_channels} channels do not divide into {filters.number} groups"
    return None


def _with_costs(model: nn.Module, found: Sequence[Plan], inputs: Mapping[str, Tensor]) -> list[Plan]:
    measured = deepcopy(model)
    for plan in found:
        if plan.is_compacted:
            measured.set_submodule(plan.path, compacted(measured.get_submodule(plan.path), plan.filters, plan.path))
    try:
        cost = macs_by_layer(measured, inputs)
    except Exception as error:
        raise StageError(
            f"compact: the model does not run once its layers have compact filters: {error}\n"
            "Mend: its code reaches into a layer, such as `self.layer.weight`; name that layer in `ignore`."
        ) from error
    priced = [
        replace(plan, macs_after=sum(n for path, n in cost.items() if f"{path}.".startswith(f"{plan.path}.")))
        for plan in found
    ]
    return [
        plan.kept("its compact form would not cost less")
        if plan.is_compacted and plan.macs_after >= plan.macs_before
        else plan
        for plan in priced
    ]


def loss_rises(
    model: nn.Module, forms: Mapping[str, nn.Module], samples: Sequence[Batch], context: Context
) -> list[float]:
    """How much the mean loss on samples rises with each compact form alone in the model."""
    whole = deepcopy(model).to(context.device).eval()
    loss = judged(whole, samples, context).loss
    rises: list[float] = []
    for path, form in forms.items():
        layer = whole.get_submodule(path)
        whole.set_submodule(path, deepcopy(form).to(context.device).eval())
        rises.append(judged(whole, samples, context).loss - loss)
        whole.set_submodule(path, layer)
    return rises


def within(planned: Sequence[Plan], share: float, total: int) -> list[Plan]:
    """The plans with as few layers compacted as bring all layers' cost down to `share` of `total`, if they can.

    Those go first whose loss rises least for what they save.
    """
    left, chosen = total, set[str]()
    for plan in sorted((plan for plan in planned if plan.is_compacted), key=lambda plan: plan.price):
        if left <= share * total:
            break
        left -= plan.macs_before - plan.macs_after
        chosen.add(plan.path)
    return [
        plan if plan.path in chosen or not plan.is_compacted else plan.kept("the budget is met without it")
        for plan in planned
    ]


def confirmed(
    model: nn.Module, planned: Sequence[Plan], forms: Mapping[str, nn.Module], context: Context
) -> list[Plan]:
    """The plans, those of them dense whose compact form's engine is not faster than the layer's own beyond noise."""
    asked = [
        Form(plan.path, repr(plan.filters), lambda path=plan.path: forms[path]) for plan in planned if plan.is_compacted
    ]
    found = beside_layers(model, asked, "compact form", context)
    judged_plans: list[Plan] = []
    for plan in planned:
        beside = found.get(plan.path)
        if beside is not None:
            plan = replace(plan, engine=str(beside))
            if beside.verdict != "faster":
                plan = plan.kept(f"the engine of its compact form: {beside}")
        judged_plans.append(plan)
    return judged_plans


def applied(model: nn.Module, planned: Sequence[Plan], forms: Mapping[str, nn.Module]) -> nn.Module:
    """A copy with the fitted compact forms of the chosen layers in their places."""
    compact = deepcopy(model)
    for plan in planned:
        if plan.is_compacted:
            compact.set_submodule(plan.path, deepcopy(forms[plan.path]))
    return compact
