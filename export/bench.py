"""Engines that are built and timed while a stage decides, and then dropped."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from ..pipeline.artifact import Artifact
from ..pipeline.bench import Beside
from ..pipeline.data import Dataset
from ..pipeline.errors import ExportError
from ..pipeline.progress import Progress, Silent
from ..pipeline.side_by_side import Part
from .engine import Array
from .latency import compare
from .latency_table import LatencyTable
from .onnx_file import OnnxMetadata, exported_layer
from .parity import numpy_inputs
from .part_times import Placed, part_times_ms
from .target import FLOAT, INT8, EngineFile, OnnxTarget, Source, Target


@dataclass(frozen=True)
class TargetBench:
    """Engines for one target at its first batch size; `pipeline.bench.Bench` says what they are for."""

    target: Target
    data: Dataset
    table: Path | None = None
    """The folder of the latency tables that runs share; None keeps nothing."""
    progress: Progress = field(default_factory=Silent)

    @property
    def label(self) -> str:
        """Target, batch and threads in words."""
        threads = f"{self.target.threads} thread{'s' if self.target.threads > 1 else ''}"
        return f"{self.target.runtime} {self.target.device}, batch {self._batch}, {threads}"

    @contextmanager
    def beside(self, baseline: Artifact) -> Generator[Callable[[Artifact], Beside]]:
        """Times artifacts beside `baseline`, whose engine is built once."""
        inputs = numpy_inputs(self.data.timed(self._batch))
        with TemporaryDirectory(prefix="potstill-bench-") as scratch:
            base = self._built(baseline, Path(scratch) / "baseline")
            count = 0

            def beside(candidate: Artifact) -> Beside:
                nonlocal count
                count += 1
                return self._timed(base, self._built(candidate, Path(scratch) / str(count)), inputs)

            yield beside

    def layer_beside(self, baseline: nn.Module, candidate: nn.Module, inputs: Tensor) -> Beside:
        """Two float layers as engines of their own."""
        batch = {"input": inputs[:1].expand(self._batch, *inputs.shape[1:])}
        with TemporaryDirectory(prefix="potstill-bench-") as scratch:
            files: list[Path] = []
            for name, layer in (("baseline", baseline), ("candidate", candidate)):
                folder = Path(scratch) / name
                folder.mkdir()
                files.append(self._onnx_target.build(exported_layer(layer, batch), FLOAT, folder))
            return self._timed(files[0], files[1], numpy_inputs(batch))

    def part_ms(self, parts: Sequence[Part], placed: Placed | None) -> list[float]:
        """What the table of this machine has, and for the rest what is measured now."""
        table = LatencyTable.of(self.table, self.target, FLOAT if placed is None else INT8, self.progress.say)
        known = table.known()
        missing = list({part.key: part for part in parts if part.key not in known}.values())
        if missing:
            self.progress.say(
                f"times {len(missing)} layers or blocks by themselves for the latency table ({self.label})"
            )
            measured = dict(zip(missing, part_times_ms(self._onnx_target, missing, placed), strict=True))
            table.add(measured)
            known |= {part.key: ms for part, ms in measured.items()}
        return [known[part.key] for part in parts]

    @property
    def _onnx_target(self) -> OnnxTarget:
        if isinstance(self.target, OnnxTarget):
            return self.target
        raise ExportError(
            f"{self.target.label} cannot time single layers, which a stage of this recipe asks of the first target: "
            "put one first whose engines are built from ONNX, such as onnxruntime"
        )

    @property
    def _batch(self) -> int:
        return self.target.batch[0]

    def _built(self, artifact: Artifact, folder: Path) -> Path:
        folder.mkdir()
        precision = FLOAT if artifact.quantization is None else artifact.quantization.scheme
        metadata = OnnxMetadata(recipe_hash="", stage="bench", classes=self.data.classes)
        source = Source(artifact=artifact, data=self.data, metadata=metadata)
        return self.target.make(source, precision, folder).file

    def _timed(self, baseline: Path, candidate: Path, inputs: Mapping[str, Array]) -> Beside:
        new, base = (EngineFile(self.target, file) for file in (candidate, baseline))
        (comparison,) = compare(new, base, {self._batch: inputs}).comparisons
        return Beside(
            ratio=comparison.ratio,
            low=comparison.interval.low,
            high=comparison.interval.high,
            verdict=comparison.verdict,
            baseline_ms=comparison.baseline.p50_ms,
            candidate_ms=comparison.candidate.p50_ms,
            baseline_bytes=base.num_bytes,
            candidate_bytes=new.num_bytes,
        )
