"""What layers cost as they are, and what they would cost factorized."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor, nn

from ...pipeline.cost import macs_by_layer, num_parameters
from ...pipeline.errors import StageError
from ...pipeline.factors import Factors, factored
from ..pruning.selection import ignored_paths, shared_paths
from .ranks import Choice


@dataclass(frozen=True)
class LayerCost:
    """One layer, or its factors, for one sample."""

    macs: int
    """A layer called twice counts twice."""
    parameters: int


class Costs:
    """What a model costs with some of its layers factorized."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor], ignore: Sequence[str]) -> None:
        """Raises StageError where an `ignore` pattern matches nothing."""
        self._model = model
        self._inputs = inputs
        self._ignored = ignored_paths(model, ignore)
        self._shared = shared_paths(model)
        self._macs = macs_by_layer(model, inputs)
        self._known: dict[tuple[str, Factors], LayerCost] = {}

    def reason_to_keep(self, path: str) -> str | None:
        """Why the layer stays whole whatever its factors cost."""
        if path in self._ignored:
            return "named in `ignore`"
        return "shares its weight with another layer" if path in self._shared else None

    def of_layer(self, path: str) -> LayerCost:
        """The layer as it is; embeddings have no multiply-accumulates."""
        return LayerCost(self._macs.get(path, 0), num_parameters(self._model.get_submodule(path)))

    def after(self, choice: Choice) -> dict[str, LayerCost]:
        """What each layer of the choice then costs: its factors, or itself where it has none.

        Raises StageError where the model does not run once those that may be are factorized.
        """
        free = {path: factors for path, factors in choice.items() if self.reason_to_keep(path) is None}
        self._measure(
            {path: factors for path, factors in free.items() if factors and (path, factors) not in self._known}
        )
        return {
            path: self._known[path, factors] if factors and path in free else self.of_layer(path)
            for path, factors in choice.items()
        }

    def _measure(self, unknown: Mapping[str, Factors]) -> None:
        """Run the model once with all of these in it; what a layer's factors cost does not depend on other layers."""
        if not unknown:
            return
        measured = deepcopy(self._model)
        for path, factors in unknown.items():
            measured.set_submodule(path, factored(measured.get_submodule(path), factors, path))
        cost = macs_of_factorized(measured, self._inputs)
        for path, factors in unknown.items():
            parameters = num_parameters(measured.get_submodule(path))
            self._known[path, factors] = LayerCost(macs_within(path, cost), parameters)

    def shares(self, choice: Choice) -> dict[str, float]:
        """The cost of each layer's factors as a share of the layer's: of an embedding its parameters, else its MACs."""
        found: dict[str, float] = {}
        for path, after in self.after(choice).items():
            before = self.of_layer(path)
            found[path] = after.macs / before.macs if before.macs else after.parameters / before.parameters
        return found

    def share_of_model(self, choice: Choice) -> float:
        """The MACs of the model with every layer factorized that costs less so, as a share of the whole model's."""
        saved = sum(max(self._macs[path] - after.macs, 0) for path, after in self.after(choice).items())
        return 1 - saved / max(self.macs, 1)

    @property
    def macs(self) -> int:
        """Of the whole model as it is."""
        return sum(self._macs.values())


def macs_of_factorized(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Multiply-accumulates by layer; StageError where the model does not run with factors in it."""
    try:
        return macs_by_layer(model, inputs)
    except Exception as error:
        raise StageError(
            f"factorize: the model does not run once its layers are factorized: {error}\n"
            "Mend: its code reaches into a layer, such as `self.layer.weight`; name that layer in `ignore`."
        ) from error


def macs_within(path: str, cost: Mapping[str, int]) -> int:
    """Those of a layer and everything inside it."""
    return sum(count for name, count in cost.items() if name == path or name.startswith(f"{path}."))
