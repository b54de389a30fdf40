"""Where an engine that did not get faster spends its time, operator by operator, beside the engine before it."""

from collections.abc import Iterator, Mapping, Sequence

from .measurement import Audit, OperatorTime

MOVING = frozenset(
    {"ReorderInput", "ReorderOutput", "Transpose", "QuantizeLinear", "DequantizeLinear", "Cast"}
    | {"Reorder", "Convert", "FakeQuantize"}
)
"""Operators that only bring values into another layout or number format, by ONNX Runtime's words and OpenVINO's."""

SLOWER_LAYERS = 3
"""How many of the layers that got slower are named."""

NOTABLE = 0.1
"""The share of an engine's time from which what only moves values is worth a sentence."""

SLOWER = 1.2
"""A layer is called slower from this ratio on: between two profiles of one file single layers differ by up to 15 %."""


def diagnosis(
    before: Sequence[OperatorTime], after: Sequence[OperatorTime], widths: Mapping[str, int], audit: Audit | None
) -> tuple[str, ...]:
    """Sentences, the largest loss first; `widths` are the output channels of the layers of the later model by path.

    Times are from the runtime's own profile, which slows small operators down: they are shares to compare, not
    latencies.
    """
    return (
        *_moving(before, after),
        *_slower_layers(before, after, widths),
        *_more_operators(before, after),
        *_float_islands(audit),
    )


def _moving(before: Sequence[OperatorTime], after: Sequence[OperatorTime]) -> Iterator[str]:
    was, is_now = _moving_ms(before), _moving_ms(after)
    total = sum(each.ms for each in after)
    if is_now > was and is_now > NOTABLE * total:
        kinds = sorted({each.operator for each in after if each.operator in MOVING})
        yield (
            f"{', '.join(kinds)} only move values between layouts and number formats, and take "
            f"{is_now / total:.0%} of the time ({is_now:.3g} ms, before {was:.3g} ms)"
        )


def _moving_ms(times: Sequence[OperatorTime]) -> float:
    return sum(each.ms for each in times if each.operator in MOVING)


def _slower_layers(
    before: Sequence[OperatorTime], after: Sequence[OperatorTime], widths: Mapping[str, int]
) -> Iterator[str]:
    was = _by_layer(before)
    changes = {path: (ms, _within(path, after)) for path, ms in was.items()}
    slower = sorted(
        ((now - ms, path) for path, (ms, now) in changes.items() if now > SLOWER * ms and path),
        reverse=True,
    )
    for _, path in slower[:SLOWER_LAYERS]:
        ms, now = changes[path]
        parts = sorted({each.operator for each in after if _belongs(path, each.layer)})
        narrow = [widths[inner] for inner in widths if _belongs(path, inner) and widths[inner] < 16]
        why = f"; {min(narrow)} channels are fewer than kernels work on at once" if narrow else ""
        yield f"`{path}` takes {now:.3g} ms, before {ms:.3g} ms, now as {', '.join(parts)}{why}"


def _more_operators(before: Sequence[OperatorTime], after: Sequence[OperatorTime]) -> Iterator[str]:
    if len(after) > len(before):
        yield f"{len(after)} operators run instead of {len(before)}, and each has a cost of its own"


def _by_layer(times: Sequence[OperatorTime]) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in times:
        found[each.layer] = found.get(each.layer, 0.0) + each.ms
    return found


def _within(path: str, times: Sequence[OperatorTime]) -> float:
    return sum(each.ms for each in times if _belongs(path, each.layer))


def _belongs(path: str, layer: str) -> bool:
    """Whether a layer is `path` or a factor of it, such as ``conv1.0`` of ``conv1``."""
    return layer == path or (layer.startswith(f"{path}.") and layer.removeprefix(f"{path}.").isdigit())


def _float_islands(audit: Audit | None) -> Iterator[str]:
    # Only int8 activations cost a change of format on the way to a float layer and back.
    if audit is None or audit.precision != "int8":
        return
    islands = [layer for layer in audit.layers if layer.precision == "float"]
    if islands:
        named = ", ".join(f"`{layer.name}` ({layer.reason})" for layer in islands[:SLOWER_LAYERS])
        more = f" and {len(islands) - SLOWER_LAYERS} more" if len(islands) > SLOWER_LAYERS else ""
        yield f"these layers stayed in float between int8 ones: {named}{more}"
