"""The layers of a network as one forward shows them: where its stages end, what its head is, what comes before what."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...pipeline.taps import INPUT, Outputs, outputs_of, path_of
from .projection import as_maps, is_grid

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
    nn.Sigmoid,
    nn.Tanh,
)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
VALUES = ("value", "values", "v", "v_proj", "value_proj", "to_v", "v_lin", "wv")
"""What linear layers that give the values of an attention are called."""
FUSED = ("qkv", "to_qkv", "qkv_proj", "Wqkv", "in_proj")
"""What linear layers that give queries, keys and values side by side are called; the values are the last third."""


class LayerError(Exception):
    """Why a network has no such layer, in a sentence; the caller adds the method and its alternatives."""


@dataclass
class _Record:
    """What hooks saw during one forward."""

    returned: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Copies, since a later operation may change a tensor in place."""
    given: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    itself: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What each module returned, not copied, for `is`; held so that no identity is used twice."""
    order: dict[str, None] = field(default_factory=dict[str, None])
    """Paths as they finish; of several runs of one module, the last."""


class Anatomy:
    """A network's layers, known from one forward in eval mode on a few samples."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        self.model = model
        self._inputs = dict(inputs)
        self._modules = dict(cast("Iterator[tuple[str, nn.Module]]", model.named_modules()))
        self._record, self._logits = _watched(model, self._inputs)

    @property
    def num_classes(self) -> int:
        """The length of the logits."""
        return self._logits.shape[-1]

    def shape(self, tap: str) -> tuple[int, ...]:
        """The shape at a tap, batch included. Raises LayerError for no module, or one without a single tensor."""
        path = path_of(tap)
        if path not in self._modules or not path:
            close = difflib.get_close_matches(path, self._modules, n=1)
            raise LayerError(f"has no layer `{path}`" + (f"; did you mean `{close[0]}`?" if close else ""))
        found = (self._record.given if tap.endswith(INPUT) else self._record.returned).get(path)
        if found is None:
            what = "is not given one tensor" if tap.endswith(INPUT) else "does not return one tensor"
            raise LayerError(f"has a layer `{path}`, but it {what} when the model runs")
        return tuple(found.shape)

    def matching(self, pattern: str) -> list[str]:
        """The taps whose module paths fit a pattern such as ``layer?`` or ``blocks.*:input``, in running order.

        Patterns are those of the shell; as in a shell, a `*` stays within one part of a dotted path.
        """
        wanted = path_of(pattern).split(".")
        side = pattern[len(path_of(pattern)) :]
        found = [path + side for path in self._record.order if _fits(path.split("."), wanted)]
        if not found:
            self.shape(pattern)  # says which name is near
        return found

    def stage_ends(self) -> list[str]:
        """The last module of each resolution of maps (B, C, H, W), largest first; pooled 1×1 maps are left out.

        What flows inside a transformer's blocks, such as (B, heads, N, D), is no map. The first layers of a stage that
        still have the resolution of the stage before it, such as a bottleneck's first convolution, do not end that one.
        """
        inside = tuple(f"{block}." for block in self.blocks())
        ends: dict[tuple[int, ...], str] = {}
        for path in self._record.order:
            size = self._map_size(path)
            if size and not path.startswith(inside) and not self._starts_another(path, ends.get(size)):
                ends[size] = path
        return list(ends.values())

    def _starts_another(self, path: str, end: str | None) -> bool:
        """Whether `path` is in a module of another resolution that the `end` of its own resolution is not in."""
        if end is None:
            return False
        parts = path.split(".")
        around = [".".join(parts[:count]) for count in range(1, len(parts))]
        return any(
            self._map_size(outer) not in ((), self._map_size(path)) and not end.startswith(f"{outer}.")
            for outer in around
        )

    def blocks(self) -> list[str]:
        """The repeated blocks of a transformer, in order: numbered neighbours of one class that return (B, N, D).

        They hold modules of their own; a single one is a block where it holds an attention.
        """
        chains: dict[tuple[str, type[nn.Module]], list[str]] = {}
        for path in self._record.order:
            module = self._modules[path]
            parent, _, name = path.rpartition(".")
            if name.isdigit() and len(self._returned_shape(path)) == 3 and any(module.children()):
                chains.setdefault((parent, type(module)), []).append(path)
        attentions = self.attentions()
        long = [
            chain
            for chain in chains.values()
            if len(chain) > 1 or any(tap.startswith(f"{chain[0]}.") for tap in attentions)
        ]
        within = tuple(f"{path}." for chain in long for path in chain)
        return max((chain for chain in long if not chain[0].startswith(within)), key=len, default=list[str]())

    def embeddings(self) -> str:
        """The tap of the tokens that go into the first block. Raises LayerError where there are no blocks."""
        blocks = self.blocks()
        if not blocks:
            raise LayerError("has no row of blocks on tokens (B, N, D)")
        return blocks[0] + INPUT

    def attentions(self) -> list[str]:
        """The taps of the attention probabilities (B, heads, N, N), one in each module that holds an attention.

        They are what a softmax module returns, or what another module, such as a dropout, is given.
        """
        found: dict[str, str] = {}
        for path in self._record.order:
            parent = path.rpartition(".")[0]
            if _are_probabilities(self._record.given.get(path)):
                found.setdefault(parent, path + INPUT)
            elif isinstance(self._modules[path], nn.Softmax) and self._is_attention(path):
                found.setdefault(parent, path)
        return list(found.values())

    def scores(self, attention: str) -> str:
        """The tap of what the softmax of an attention is given. Raises LayerError where the softmax is no module."""
        if attention.endswith(INPUT):
            raise LayerError(f"gives the probabilities at `{attention}` by a softmax that is no module of its own")
        return attention + INPUT

    def values(self) -> list[str]:
        """The taps of the values (B, N, D) of each attention, found by the names that they usually have.

        The tensors of the layers that are called as in `FUSED` hold queries and keys before the values.
        """
        return [
            path
            for path in self._record.order
            if path.rpartition(".")[2] in (*VALUES, *FUSED) and len(self._returned_shape(path)) == 3
        ]

    def is_transformer(self) -> bool:
        """Whether the network is a row of blocks on tokens, with no maps after them."""
        blocks, ends = self.blocks(), self.stage_ends()
        order = list(self._record.order)
        return bool(blocks) and all(order.index(end) < order.index(blocks[-1]) for end in ends)

    def ends(self) -> list[str]:
        """What `layers: auto` taps: the blocks of a transformer, else the ends of the resolution stages."""
        return self.blocks() if self.is_transformer() else self.stage_ends()

    def before_activation(self, tap: str) -> str:
        """The tap just before the activation that made what flows at `tap`; `tap` itself where none did.

        Raises LayerError for values that an activation outside any module cut off at zero.
        """
        itself = self._record.itself.get(path_of(tap))
        for path in self._record.order:
            if self._record.itself.get(path) is itself and isinstance(self._modules[path], ACTIVATIONS):
                return path + INPUT
        held = self._record.returned.get(path_of(tap))
        if held is not None and bool((held >= 0).all()):
            raise LayerError(
                f"gives no values below zero at `{tap}`, and the activation there is no module of its own; name a "
                "layer before it"
            )
        return tap

    def batch_norm(self, tap: str) -> str | None:
        """The batch norm that gives what flows at `tap`; None where something else does, such as a sum after it."""
        held = (self._record.given if tap.endswith(INPUT) else self._record.returned)[path_of(tap)]
        for path, returned in self._record.returned.items():
            if isinstance(self._modules[path], BATCH_NORMS) and torch.equal(returned, held):
                return path
        return None

    def head(self) -> str:
        """The linear layer that gives the logits. Raises LayerError where there is none."""
        last = ""
        for path in self._record.order:
            module = self._modules[path]
            if isinstance(module, nn.Linear) and module.out_features == self.num_classes:
                last = path
        if not last or not torch.equal(self._record.returned[last].reshape(-1), self._logits.reshape(-1)):
            raise LayerError("does not end in a linear layer that gives the logits")
        return last

    def features(self) -> str:
        """The tap of the pooled features (B, D): what goes into the head."""
        return self.head() + INPUT

    def last_map(self, *, grids: bool = False) -> str:
        """The tap of the maps whose means over height and width are the features: those that class activations need.

        With `grids`, also of tokens that are a square grid of patches. Raises LayerError where the head stands on
        something else.
        """
        features = self._record.given[self.head()]
        for path in reversed(self._record.order):
            found = self._record.returned.get(path)
            if found is None or not (is_grid(tuple(found.shape)) if grids else found.ndim == 4):
                continue
            maps = as_maps(found)
            if maps.shape[2:] == (1, 1) or maps.shape[:2] != features.shape:
                continue
            if torch.allclose(maps.mean((2, 3)), features, rtol=1e-3, atol=1e-4):
                return path
        raise LayerError("does not end in maps, their mean over height and width, and a linear layer")

    def pooling(self) -> str:
        """The module without weights that is given the last maps. Raises LayerError where a function pools them."""
        last = self._record.returned[self.last_map()]
        for path, given in self._record.given.items():
            bare = not any(True for _ in self._modules[path].parameters())
            if bare and given.shape == last.shape and torch.equal(given, last) and self._shrinks(path):
                return path
        raise LayerError("does not pool its last maps in a module of its own")

    @torch.no_grad()
    def look(self, taps: Iterable[str]) -> Outputs:
        """What flows at the taps for the samples that the anatomy was found with, in eval mode."""
        training = self.model.training
        self.model.eval()
        found = outputs_of(self.model, self._inputs, tuple(taps))
        self.model.train(training)
        return found

    def module(self, path: str) -> nn.Module:
        """The module at a path."""
        return self._modules[path]

    def _returned_shape(self, path: str) -> tuple[int, ...]:
        """() where a module does not return one tensor with a row for each sample, such as one for each window."""
        found = self._record.returned.get(path)
        return () if found is None or len(found) != len(self._logits) else tuple(found.shape)

    def _map_size(self, path: str) -> tuple[int, ...]:
        """The height and width of the maps that a module returns; () where it returns none."""
        shape = self._returned_shape(path)
        return shape[2:] if len(shape) == 4 and min(shape[2:]) > 1 and not self._is_attention(path) else ()

    def _shrinks(self, path: str) -> bool:
        shape = self._returned_shape(path)
        return len(shape) == 2 or shape[2:] == (1, 1)

    def _is_attention(self, path: str) -> bool:
        return bool(self._returned_shape(path)) and _are_probabilities(self._record.returned[path])


def _are_probabilities(tensor: Tensor | None) -> bool:
    """Whether the rows of (B, heads, N, N) sum to one."""
    return (
        tensor is not None
        and tensor.ndim == 4
        and tensor.shape[2] == tensor.shape[3] > 1
        and bool((tensor >= 0).all())
        and bool(torch.isclose(tensor.sum(-1), tensor.new_ones(()), atol=1e-3).all())
    )


def _fits(path: list[str], wanted: list[str]) -> bool:
    return len(path) == len(wanted) and all(fnmatchcase(*parts) for parts in zip(path, wanted, strict=True))


@torch.no_grad()
def _watched(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[_Record, Tensor]:
    record = _Record()
    paths = {module: path for path, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()) if path}

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor):
            record.given[paths[module]] = arguments[0].clone()

    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        path = paths[module]
        record.order.pop(path, None)
        record.order[path] = None
        if isinstance(output, Tensor):
            record.itself[path] = output
            record.returned[path] = output.clone()

    handles = [module.register_forward_pre_hook(before) for module in paths]
    handles += [module.register_forward_hook(after) for module in paths]
    training = model.training
    model.eval()
    try:
        logits = model(*inputs.values())
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return record, logits
