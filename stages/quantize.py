"""Quantization: grids placed for the runtime, calibrated, then trained under them against the teacher."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import model_validator
from torch import nn

from ..pipeline.artifact import Artifact
from ..pipeline.errors import StageError
from ..pipeline.processor import has_int8_dot_product
from ..pipeline.quantization import Calibration, Grids, Quantization, Scheme, capture
from .acceptance import Accept, accepted
from .pruning.selection import ignored_paths
from .quantization.mixed_precision import MixedPrecision, mixed
from .recovery import Recovery, calibrated_anew, recover
from .stage import Context, Stage


class Quantize(Stage, frozen=True, extra="forbid"):
    """Fold batch norms, place quantizers, calibrate them, and distil the teacher under them."""

    compresses: ClassVar[bool] = True
    keeps_zeros: ClassVar[bool] = True

    stage: Literal["quantize"] = "quantize"
    scheme: Scheme = "int8"
    """`int8`: uint8 activations, one grid a tensor; int8 weights, one symmetric scale an output channel.
    `int8_weights` and `int4_weights`: the weights of linear layers alone, one affine grid a group of inputs."""
    group_size: Literal[32, 64, 128] | None = None
    """How many inputs of an output share a grid where the weights alone are quantized; 32 unless given."""
    grids: Grids = "affine"
    """Of the activations. `symmetric`, which TensorRT needs, is the same numbers as int8 with zero point 0; what is
    never negative, as behind a ReLU, then has half of the codes."""
    weight_bits: Literal["auto", 7, 8] = "auto"
    """7 keeps x86 kernels without VNNI from saturating; `auto` is 8 where this processor has it, else 7."""
    calibration: Calibration = Calibration()
    """How the activations' ranges are found."""
    ignore: tuple[str, ...] = ()
    """Patterns of module paths that stay in float, such as `head`."""
    equalize: bool = False
    """Bring the channels of neighbouring layers to one range first, which changes nothing that the model computes."""
    bias_correction: bool = False
    """Take what rounding adds to the mean of every channel from the biases, measured on the calibration's samples."""
    learn_steps: bool = False
    """Let `recover` train the grids, too: every scale, and the zero points of activations that have one."""
    mixed_precision: MixedPrecision | None = None
    """Which layers go back to float when they were measured in int8; none unless given."""
    accept: Accept = "always"
    """`faster` or `smaller` leaves the model in float where the calibrated engine is not, beyond noise, what is said
    here."""
    recover: Recovery = Recovery(epochs=1)

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.learn_steps and self.recover.epochs == 0:
            raise ValueError(
                "`learn_steps` trains the grids while the model recovers: give `recover.epochs`, or drop it"
            )
        if self.scheme == "int8":
            if self.group_size is not None:
                raise ValueError(
                    "`group_size` is for `scheme: int8_weights` or `int4_weights`; int8 has one scale an output channel"
                )
            return self
        if self.weight_bits != "auto":
            raise ValueError(f"`weight_bits` is for `scheme: int8`; {self.scheme} says it already")
        if self.calibration != Calibration():
            raise ValueError(f"`calibration` finds the ranges of activations, which {self.scheme} leaves in float")
        if self.grids != "affine":
            raise ValueError(f"`grids` are those of activations, which {self.scheme} leaves in float")
        given = [name for name in ("equalize", "bias_correction", "learn_steps") if getattr(self, name)]
        if given:
            raise ValueError(f"`{given[0]}` is for `scheme: int8`; the grids of {self.scheme} follow the weights")
        return self

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact with its batch norms folded and its quantizers trained; `recover.epochs: 0` only calibrates."""
        from .quantization.bias_correction import bias_corrected
        from .quantization.equalization import equalized
        from .quantization.folding import fold_batch_norms

        model, edit = fold_batch_norms(artifact.model, context.data.example())
        if self.equalize:
            model = equalized(model, context)
        context.journal.fact("batch norms folded", len(edit.layers))
        if self.scheme == "int8":
            context.journal.fact("calibration", self.calibration.method)
            context.journal.fact("grids", self.grids)
        context.journal.fact("weight bits", self._weight_bits(context))
        placeholder = Quantization(
            scheme=self.scheme,
            weight_bits=self._bits,
            group_size=self._group_size,
            weights=(),
            activations={},
            calibration=self.calibration,
            learn_steps=self.learn_steps,
            float_layers=tuple(sorted(ignored_paths(model, self.ignore))),
            grids=self.grids,
        )
        self._say_what_is_too_narrow(model, placeholder, context)
        blueprint = artifact.blueprint.with_edit(edit) if edit.layers else artifact.blueprint
        folded = replace(artifact, model=model, blueprint=blueprint, quantization=placeholder)
        if self.mixed_precision is not None:
            folded = mixed(folded, self.mixed_precision, context)
        if not accepted(artifact, folded, self.accept, context):
            return artifact
        if self.bias_correction:
            corrected = bias_corrected(calibrated_anew(folded, context), context)
            quantized = recover(corrected, self.recover, context, grids="as they are")
        else:
            quantized = recover(folded, self.recover, context)
        assert quantized.quantization is not None
        context.journal.fact("quantized weights", len(quantized.quantization.weights))
        context.journal.fact("quantized activations", len(quantized.quantization.activations))
        return quantized

    def _say_what_is_too_narrow(self, model: nn.Module, asked: Quantization, context: Context) -> None:
        """Which linear layers keep float weights; StageError where all of them do."""
        from .quantization.placement import wide_weights

        if asked.group_size is None:
            return
        weights, left = wide_weights(capture(model, context.data.example()), asked.group_size, asked.float_layers)
        if not weights:
            found = "; ".join(f"{path}: {reason}" for path, reason in left.items()) or "it has none outside of `ignore`"
            raise StageError(
                f"{self.step_name}: {self.scheme} stores weights of linear layers, and none of this model's can be "
                f"({found}). Mend: `scheme: int8`, or a smaller `group_size`"
            )
        context.journal.fact("weights left in float", left)
        for path, reason in left.items():
            context.progress.say(f"{self.step_name}: {path} keeps its weight in float: {reason}")

    @property
    def quantizes_to(self) -> str:
        """Its scheme's own."""
        return self.scheme

    @property
    def decides_by_engine(self) -> bool:
        """When the engine, with a layer in float or as a whole, has to be faster or smaller."""
        return self.accept != "always" or (self.mixed_precision is not None and self.mixed_precision.faster)

    @property
    def _group_size(self) -> int | None:
        return None if self.scheme == "int8" else self.group_size or 32

    @property
    def _bits(self) -> Literal[4, 7, 8]:
        if self.scheme != "int8":
            return 4 if self.scheme == "int4_weights" else 8
        if self.weight_bits == "auto":
            return 8 if has_int8_dot_product() else 7
        return self.weight_bits

    def _weight_bits(self, context: Context) -> str:
        if self._bits != 7:
            return str(self._bits) + ("" if self._group_size is None else f", in groups of {self._group_size}")
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
        if self.scheme != "int8" and any(stage.stage == "sparsify" for stage in earlier):
            return f"the grids of {self.scheme} do not hold the zeros of `sparsify`; take `scheme: int8`, or drop one"
        return None

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers."""
        return self.recover.named_teachers("recover")
