"""Whether an engine computes what the model computes, on real inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from ..pipeline.artifact import Artifact
from ..pipeline.data import Dataset, Split
from ..pipeline.errors import ParityError
from .engine import Array, Engine
from .measurement import Parity
from .onnx_file import OUTPUT
from .target import BF16, HALF, scheme_of

SAMPLES = 256
BATCH_SIZE = 64
ALONE = 8
"""Samples of unequal length that are compared one by one."""

FLOAT_LIMIT = 1e-4
"""Of the largest output. Other orders of summation cost about 1e-6 in float32; a wrong weight or operator far more."""

HALF_LIMIT = 5e-3
"""Of the largest output. A value rounded to 16 bits moves by 2^-11; measured were 0.0002 to 0.0006 in eleven kinds of
untrained networks."""

BF16_LIMIT = 8 * HALF_LIMIT
"""A value rounded to bfloat16 moves by 2^-8, eight times as far."""

OF_BF16 = {BF16: 2.0, HALF: 2.0 / 8}
"""Where rounding alone moves a network's outputs far: allowed is then twice what products in bfloat16 change in
PyTorch; of float16, whose roundings are an eighth as large, an eighth of that."""

INT8_MEAN_LIMIT = 0.03
"""Of the outputs' standard deviation, for the mean difference. A sum that falls on the other side of a rounding moves
one code by one step, and later layers carry that on: measured were 0.0001 to 0.007 in ResNets of 8 and 20 layers and
0.016 in one of 56. Saturating kernels moved the same networks by 0.02 to 0.17, wrong scales or weights by more."""

OF_QUANTIZATION = 1.0
"""Where rounding alone moves a network's outputs far, a sum on the other side of a rounding moves them far, too:
allowed then is as much as the mean difference between fake-quantized and float model. Measured in untrained networks
were 0.4 to 0.85 of that; where 8-bit weights saturated the kernels, 1.8 to 12 times it."""

INT8_AGREEMENT = 0.99
"""Of the samples whose prediction does not hang on a rounding; measured were 1.0, and 0.88 to 0.98 where kernels
saturated in trained networks."""

NEAR_TIE = 0.05
"""Two highest outputs closer than this share of the standard deviation: two steps of the last grid can change the
winner, which in these networks were 0.03 to 0.05. Or closer than twice what quantization itself changed, where that is
more."""

TIE_ROUNDINGS, TIE_ROUNDINGS_IN_HALF = 2.0, 6.0
"""How many times what quantization changed. In a graph whose float part is in 16 bits every value is rounded before it
is quantized, and many fall on the other side: of four untrained transformers, predictions changed at up to 4.6 times
that."""


_Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""From inputs by name to outputs by name, as engines run."""


def parity_of(
    engine: Engine,
    artifact: Artifact,
    data: Dataset,
    precision: str,
    reference: nn.Module | None = None,
    *,
    in_half: bool = False,
) -> Parity:
    """Compare the outputs for the first test samples with those of the model that the engine was built from.

    `reference` is that model where the engine rounds elsewhere than the artifact. `demand_parity` judges by what is
    found.
    """
    model = artifact.model.eval()
    if reference is None:
        reference = model if scheme_of(precision) is None else artifact.executable(data.example())
    return parity_between(engine.run, reference, model, data, precision, in_half=in_half)


def parity_between(
    run: _Run, reference: nn.Module, model: nn.Module, data: Dataset, precision: str, *, in_half: bool = False
) -> Parity:
    """Compare what `run` makes of the first test samples with what `reference` does; `model` is that one in float.

    `in_half` says that what a quantized graph leaves in float is in 16 bits.
    """
    quantized = () if reference is model else (_torch(reference),)
    ours, floats, *rounded = _outputs((_named(run), _torch(model), *quantized), data.test)
    theirs = rounded[0] if rounded else floats
    for outputs, whose in ((theirs, "model"), (ours, "engine")):
        if not np.isfinite(outputs).all():
            raise ParityError(f"the {whose}'s outputs for real inputs hold NaN or infinity; look at its weights")
    difference = np.abs(ours - theirs)
    scale, spread = float(np.abs(theirs).max()), float(theirs.std())
    tiny = float(np.finfo(np.float32).tiny)
    mean_relative = float(difference.mean()) / max(spread, tiny)
    max_relative = float(difference.max()) / max(scale, tiny)
    classifies = bool(data.classes) and ours.ndim == 2 and ours.shape[1] > 1
    same = ours.argmax(1) == theirs.argmax(1) if classifies else None
    if scheme_of(precision) is not None:
        rounding = float(np.abs(floats - theirs).mean()) / max(spread, tiny)
        mean_limit = max(INT8_MEAN_LIMIT, OF_QUANTIZATION * rounding)
        passed = mean_relative <= mean_limit
        limit = f"mean difference at most {mean_limit:.1%} of the outputs' standard deviation"
        if mean_limit > INT8_MEAN_LIMIT:
            limit += ", as much as quantization itself changed"
        if same is not None:
            roundings = TIE_ROUNDINGS_IN_HALF if in_half else TIE_ROUNDINGS
            decided = _margin(theirs) > max(NEAR_TIE, roundings * rounding) * spread
            passed = passed and bool(decided.sum() == 0 or same[decided].mean() >= INT8_AGREEMENT)
            limit += f", and the same prediction for at least {INT8_AGREEMENT:.0%} of the samples, near ties left out"
    else:
        allowed = {HALF: HALF_LIMIT, BF16: BF16_LIMIT}.get(precision, FLOAT_LIMIT)
        limit = f"largest difference at most {allowed:g} of the largest output"
        if precision in OF_BF16 and max_relative > allowed:
            # Only now: where the processor does not multiply bfloat16 itself, this takes long.
            moved = float(np.abs(_outputs((_in_bf16(model),), data.test)[0] - floats).max()) / max(scale, tiny)
            if OF_BF16[precision] * moved > allowed:
                allowed = OF_BF16[precision] * moved
                limit = f"largest difference at most {allowed:.3g} of the largest output, by what bfloat16 changed"
        passed = max_relative <= allowed
    return Parity(
        reference="float model in PyTorch" if scheme_of(precision) is None else "fake-quantized model in PyTorch",
        samples=len(ours),
        max_absolute=float(difference.max()),
        max_relative=max_relative,
        mean_relative=mean_relative,
        agreement=None if same is None else float(same.mean()),
        passed=passed,
        limit=limit,
    )


def demand_parity(parity: Parity, label: str) -> None:
    """Raise ParityError with the numbers unless the rule is met."""
    if parity.passed:
        return
    agreed = "" if parity.agreement is None else f"; {parity.agreement:.1%} of the predictions agree"
    raise ParityError(
        f"{label}: the engine does not compute what the {parity.reference} computes. On {parity.samples} test samples "
        f"the outputs differ by up to {parity.max_absolute:.4g} ({parity.max_relative:.2%} of the largest output), on "
        f"average by {parity.mean_relative:.2%} of their standard deviation{agreed}. The rule: {parity.limit}.\n"
        "Mend: a processor without VNNI needs 7-bit weights (`weight_bits: 7` of the quantize stage); otherwise look "
        "for an operator whose ONNX form differs from torch's, and replace it in the model."
    )


def numpy_inputs(inputs: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """As engines take them."""
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in inputs.items()}


_Outputs = Callable[[Mapping[str, torch.Tensor]], Array]


def _named(run: _Run) -> _Outputs:
    return lambda inputs: run(numpy_inputs(inputs))[OUTPUT]


def _in_bf16(model: nn.Module) -> _Outputs:
    """The model with its products in bfloat16, as PyTorch rounds them."""

    def run(inputs: Mapping[str, torch.Tensor]) -> Array:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return _torch(model)(inputs)

    return run


def _torch(model: nn.Module) -> _Outputs:
    return lambda inputs: cast(torch.Tensor, model(*inputs.values())).float().numpy()


@torch.no_grad()
def _outputs(functions: Sequence[_Outputs], split: Split) -> list[Array]:
    found: list[list[Array]] = [[] for _ in functions]
    for index in _compared(split):
        inputs = split.batch(index).inputs
        for outputs, function in zip(found, functions, strict=True):
            outputs.append(function(inputs))
    return [np.concatenate(outputs) for outputs in found]


def _compared(split: Split) -> Iterator[torch.Tensor]:
    """Positions batch by batch; of samples of unequal length, some alone, so that engines run at many lengths."""
    count = min(SAMPLES, len(split))
    alone = 0 if split.lengths is None else min(ALONE, count)
    for start in (*range(alone), *range(alone, count, BATCH_SIZE)):
        yield torch.arange(start, start + 1 if start < alone else min(start + BATCH_SIZE, count))


def _margin(outputs: Array) -> Array:
    """How far the highest output of each sample is above the next one."""
    top = np.sort(outputs, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0]
