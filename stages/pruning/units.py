"""The groups of a model's channels, from the labels that were followed through it.

Nothing here is believed before it is proven: that code copes with fewer channels is assumed, and trust.py tries it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from ...pipeline.blueprint import LayerSize, layer_sizes
from .channels import all_channels
from .groups import ChannelGroup, Grouping, LeftAlone, Member
from .heads import bundle, head_labels, tried, ways
from .labels import distinct, integers
from .operators import labels_of
from .selection import shared_paths
from .tracing import CONSTANT, Trace, traced

INSEPARABLE = "each of them goes with all the others, as where parts of equal size are shuffled"


def channel_groups(
    model: nn.Module, inputs: Mapping[str, Tensor], ignored: Set[str], *, heads: bool = False
) -> Grouping:
    """The groups of `model`; attention's are of whole heads if `heads`, else of the same channels in every head.

    Raises StageError when the model's graph cannot be captured.
    """
    trace = traced(model, inputs, labels_of)
    if heads:
        bundle(trace)
    constrain(trace)
    units = _units(model, trace)
    outputs = {label for labels in trace.outputs for label in distinct(trace.labels.now(labels))}
    stuck, shared = trace.labels.stuck(), shared_paths(model)
    free: list[Unit] = []
    stays: dict[str, list[Unit]] = {}
    for unit in units:
        reason = _ignored(unit, ignored) or _shared(unit, shared) or stuck.get(unit.label)
        if unit.label in outputs or not unit.layers:
            continue
        if reason:
            stays.setdefault(reason, []).append(unit)
        else:
            free.append(unit)
    kinds = Counter(unit.kind for unit in free)
    stays[INSEPARABLE] = [unit for unit in free if kinds[unit.kind] == 1]
    divided = {label for labels in trace.contracted for label in distinct(labels)}
    groups = _groups(model, [unit for unit in free if kinds[unit.kind] > 1], divided, trace)
    in_groups = {path for group in groups for path in group.layers}
    left_alone = [*_opaque(model, trace)]
    for reason, of_reason in stays.items():
        left_alone += _left_alone(of_reason, reason, in_groups, trace)
    of_outputs = frozenset(path for unit in units if unit.label in outputs for path in unit.layers)
    return Grouping(tuple(groups), tuple(left_alone), of_outputs)


def constrain(trace: Trace) -> None:
    """Join what has to be cut at the same positions, and hold what code picks by number."""
    labels = trace.labels
    splits = [(split.sizes, labels.along(split.labels, split.dim)) for split in trace.splits]
    picked = [(pick, labels.along(pick.labels, pick.dim)) for pick in trace.picked]
    for sizes, channels in splits:
        if channels is not None and not _whole(channels.reshape(sizes)):
            parts = channels.reshape(-1, sizes[-1])
            labels.join_along(parts, (0,), CONSTANT)
    for pick, channels in picked:
        if channels is not None:
            labels.stick(channels[: pick.below], pick.reason)


def _whole(parts: Tensor) -> bool:
    """Whether it is one of the equal parts that goes when a channel does, so that the others stay equal."""
    for dim in range(parts.ndim):
        slabs = parts.movedim(dim, 0).flatten(1)
        if bool((slabs == slabs[:, :1]).all()) and len(distinct(slabs)) > 1:
            return True
    return False


@dataclass(frozen=True)
class Unit:
    """Channels that go together."""

    label: int
    read: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Positions by layer."""
    written: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Positions by layer, or by parameter outside of any layer."""

    @property
    def layers(self) -> tuple[str, ...]:
        """What writes the channels."""
        return tuple(self.written)

    @property
    def kind(self) -> frozenset[tuple[str, bool, int]]:
        """Units of one kind stand for one another: they have as many channels in the same places."""
        sides = ((self.read, False), (self.written, True))
        return frozenset((path, writes, len(found)) for side, writes in sides for path, found in side.items())


def _units(model: nn.Module, trace: Trace) -> list[Unit]:
    """All channels, in the order of the layers that write them."""
    positions = {path: position for position, path in enumerate(all_channels(model))}
    units: dict[int, Unit] = {}
    sides = ((trace.writes | _bare_vectors(trace), True), (trace.reads, False))
    for side, writes in sides:
        for path in sorted(side, key=lambda path: positions.get(path, len(positions))):
            for position, label in enumerate(integers(trace.labels.now(side[path]))):
                if label:
                    unit = units.setdefault(label, Unit(label))
                    (unit.written if writes else unit.read).setdefault(path, []).append(position)
    return list(units.values())


def _bare_vectors(trace: Trace) -> dict[str, Tensor]:
    """The channels of parameters outside of any layer, of those that have them along one dimension."""
    found: dict[str, Tensor] = {}
    for name, labels in trace.tensors.items():
        dims = _varying(trace, labels)
        vector = trace.labels.along(labels, dims[0]) if len(dims) == 1 else None
        if vector is not None:
            found[name] = vector
        elif dims:
            trace.labels.stick(labels, f"`{name}` has no one dimension for them")
    return found


def _varying(trace: Trace, labels: Tensor) -> list[int]:
    return [dim for dim in range(labels.ndim) if trace.labels.varies(labels, dim)]


def _groups(model: nn.Module, units: Iterable[Unit], divided: Set[int], trace: Trace) -> list[ChannelGroup]:
    """Units of one kind are one group; `divided` are labels of channels by whose number attention divides."""
    of_heads = head_labels(trace)
    kinds: dict[frozenset[tuple[str, bool, int]], list[Unit]] = {}
    for unit in units:
        kinds.setdefault(unit.kind, []).append(unit)
    numbers: dict[str, int] = {}
    groups: list[ChannelGroup] = []
    for of_kind in kinds.values():
        first = of_kind[0].layers[0]
        numbers[first] = numbers.get(first, 0) + 1
        parts = len(of_kind[0].written[first])
        members = tuple(_members(model, of_kind, trace))
        group = ChannelGroup(members, len(of_kind) * parts, parts, numbers[first])
        labels = [unit.label for unit in of_kind]
        scaled = tuple(each for member in members for each in _scaled(model, member, divided, trace))
        variants = [replace(group, members=scaled), group] if scaled != members else [group]
        if of_heads.issuperset(labels):
            # First as if code knew their number: without an attribute that says it, only the shapes could.
            counted = sorted(ways(model, group, labels, trace), key=lambda way: not way)
            groups.append(tried([replace(group, heads=True)], counted))
        else:
            groups.append(tried(variants, [*ways(model, group, labels, trace)] if parts > 1 else [()]))
    return groups


def _members(model: nn.Module, units: list[Unit], trace: Trace) -> Iterator[Member]:
    sizes = layer_sizes(model)
    for path in units[0].written:
        channels, roots = _places([unit.written[path] for unit in units])
        reads = path in units[0].read and _by_itself(sizes, path)
        dim = _varying(trace, trace.tensors[path])[0] if path in trace.tensors else None
        yield Member(path, reads, True, channels, roots, dim)
    for path in units[0].read:
        if not (path in units[0].written and _by_itself(sizes, path)):
            channels, roots = _places([unit.read[path] for unit in units])
            yield Member(path, True, False, channels, roots)


def _places(by_unit: list[list[int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    pairs = sorted((position, root) for root, positions in enumerate(by_unit) for position in positions)
    return tuple(position for position, _ in pairs), tuple(root for _, root in pairs)


def _by_itself(sizes: Mapping[str, LayerSize], path: str) -> bool:
    """Whether each channel of a layer is made of the one that it reads."""
    size = sizes.get(path)
    return size is not None and size.groups == size.in_channels == size.out_channels > 1


def _scaled(model: nn.Module, member: Member, divided: Set[int], trace: Trace) -> Iterator[Member]:
    """The member, in two where it writes the first factors of attention's products and others."""
    labels = integers(trace.writes[member.path]) if member.writes and member.path in trace.writes else []
    places = list(zip(member.channels, member.roots, strict=True))
    factors = [place for place in places if labels and labels[place[0]] in divided]
    if not factors or not isinstance(model.get_submodule(member.path), nn.Linear):
        yield member
        return
    others = [place for place in places if place not in factors]
    for some, scaled in ((factors, True), (others, False)):
        if some:
            channels, roots = zip(*some, strict=True)
            yield replace(member, channels=channels, roots=roots, scaled=scaled)


def _ignored(unit: Unit, ignored: Set[str]) -> str | None:
    named = [layer for layer in unit.layers if layer in ignored]
    return f"`ignore` names {', '.join(named)}" if named else None


def _shared(unit: Unit, shared: Set[str]) -> str | None:
    named = [path for path in dict.fromkeys((*unit.written, *unit.read)) if path in shared]
    return f"{', '.join(named)} shares its weights with another place in the model" if named else None


def _opaque(model: nn.Module, trace: Trace) -> Iterator[LeftAlone]:
    """Modules whose weights an operator reads that is not known."""
    for path, operator in trace.opaque.items():
        if path and path not in trace.reads:
            kind = type(model.get_submodule(path)).__name__
            yield LeftAlone((path,), f"what happens inside of it ({kind}, `{operator}`) is not followed")


def _left_alone(units: Iterable[Unit], reason: str, in_groups: Set[str], trace: Trace) -> Iterator[LeftAlone]:
    """All layers that keep channels for one reason; apart those of which other channels can go."""
    layers = dict.fromkeys(path for unit in units for path in unit.layers)
    layers = [path for path in layers if path not in trace.tensors or path.rpartition(".")[0] not in trace.opaque]
    for some in (False, True):
        named = tuple(path for path in layers if (path in in_groups) == some)
        if named:
            yield LeftAlone(named, reason, some)
