"""Quantization: int8 grids placed for the runtime, calibrated, then trained under them against the teacher."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Self

from ..pipeline.artifact import Artifact
from ..pipeline.processor import has_int8_dot_product
from ..pipeline.quantization import Calibration, Grids, Quantization
from .acceptance import Accept, accepted
from .pruning.selection import ignored_paths
from .quantization.mixed_precision import MixedPrecision, mixed
from .recovery import Recovery, recover
from .stage import Context, Stage


class Quantize(Stage, frozen=True, extra="forbid"):
    """Fold batch norms, place int8 quantizers, calibrate them, and distil the teacher under them."""

    compresses: ClassVar[bool] = True

    stage: Literal["quantize"] = "quantize"
    scheme: Literal["int8"] = "int8"
    """uint8 activations, one grid a tensor; int8 weights, one symmetric scale an output channel."""
    grids: Grids = "affine"
    """Of the activations. `symmetric`, which TensorRT needs, is the same numbers as int8 with zero point 0; what is
    never negative, as behind a ReLU, then has half of the codes."""
    weight_bits: Literal["auto", 7, 8] = "auto"
    """7 keeps x86 kernels without VNNI from saturating; `auto` is 8 where this processor has it, else 7."""
    calibration: Calibration = Calibration()
    """How the activations' ranges are found."""
    ignore: tuple[str, ...] = ()
    """Patterns of module paths that stay in float, such as `head`."""
    mixed_precision: MixedPrecision | None = None
    """Which layers go back to float when they were measured in int8; none unless given."""
    accept: Accept = "always"
    """`faster` or `smaller` leaves the model in float where the calibrated engine is not, beyond noise, what is said
    here."""
    recover: Recovery = Recovery(epochs=1)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact with its batch norms folded and its quantizers trained; `recover.epochs: 0` only calibrates."""
        from .quantization.folding import fold_batch_norms

        model, edit = fold_batch_norms(artifact.model, context.data.example())
        context.journal.fact("batch norms folded", len(edit.layers))
        context.journal.fact("calibration", self.calibration.method)
        context.journal.fact("grids", self.grids)
        context.journal.fact("weight bits", self._weight_bits(context))
        floats = tuple(sorted(ignored_paths(model, self.ignore)))
        placeholder = Quantization(
            weight_bits=self._bits,
            weights=(),
            activations={},
            calibration=self.calibration,
            float_layers=floats,
            grids=self.grids,
        )
        blueprint = artifact.blueprint.with_edit(edit) if edit.layers else artifact.blueprint
        folded = replace(artifact, model=model, blueprint=blueprint, quantization=placeholder)
        if self.mixed_precision is not None:
            folded = mixed(folded, self.mixed_precision, context)
        if not accepted(artifact, folded, self.accept, context):
            return artifact
        quantized = recover(folded, self.recover, context)
        assert quantized.quantization is not None
        context.journal.fact("quantized weights", len(quantized.quantization.weights))
        context.journal.fact("quantized activations", len(quantized.quantization.activations))
        return quantized

    @property
    def decides_by_engine(self) -> bool:
        """When the engine, with a layer in float or as a whole, has to be faster or smaller."""
        return self.accept != "always" or (self.mixed_precision is not None and self.mixed_precision.faster)

    @property
    def _bits(self) -> Literal[7, 8]:
        if self.weight_bits == "auto":
            return 8 if has_int8_dot_product() else 7
        return self.weight_bits

    def _weight_bits(self, context: Context) -> str:
        if self._bits == 8:
            return "8"
        reason = "as asked" if self.weight_bits == 7 else "this processor has no VNNI, whose lack would saturate 8 bits"
        context.progress.say(f"{self.step_name}: 7-bit weights ({reason})")
        return f"7 ({reason})"

    def untrained(self) -> Self:
        """The same quantizers, calibrated only, with nothing but what `ignore` names in float."""
        recovery = self.recover.model_copy(update={"epochs": 0})
        calibration = self.calibration.model_copy(update={"samples": 8})
        untrained = {"recover": recovery, "calibration": calibration, "accept": "always", "mixed_precision": None}
        return self.model_copy(update=untrained)

    def order_problem(self, earlier: Sequence[Stage]) -> str | None:
        """A model is quantized once."""
        if self.is_quantized_by(earlier):
            return "the model is already quantized by an earlier `quantize` stage; keep one of them"
        return None

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers."""
        return self.recover.named_teachers("recover")
