"""Makes reports whose numbers are like those of a real run, without running anything."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import JsonValue

from potstill.export.measurement import (
    Accuracy,
    Audit,
    Comparison,
    DeviceState,
    Energy,
    EngineMeasurement,
    Interval,
    Latency,
    LayerPrecision,
    Machine,
    MeanScore,
    NotMeasured,
    OperatorTime,
    Parity,
    Ranked,
    ScoreChange,
)
from potstill.export.resampling import verdict_of
from potstill.pipeline.journal import CurvePoint
from potstill.pipeline.metric import RMSE
from potstill.pipeline.report import GoalResult, Report, StepReport

TEST_SAMPLES = 359
TEACHER_P50_MS = 2.914

RECIPE = """\
name: digits
seed: 17
task: classification
data:
  source: digits
  size: 32
  batch_size: 64
teacher:
  model: {name: resnet, depth: 20, width: 32}
stages:
- stage: train
  epochs: 8
- stage: distill
  epochs: 10
- stage: prune
  keep: {macs: 0.6}
- stage: factorize
  keep: {energy: 0.95}
- stage: quantize
targets:
- {runtime: onnxruntime, device: cpu, precision: [fp32, int8], batch: [1, 32]}
goals: {max_accuracy_drop: 0.01, min_speedup: 4.0}
"""


@dataclass(frozen=True)
class Sketch:
    """The few numbers of a step from which the others follow."""

    name: str
    correct: int
    speedup: float
    parameters: int
    macs: int
    epochs: int = 3
    precision: str = "fp32"
    terms: tuple[str, ...] = ("cross_entropy", "kd")
    looks: int = 1
    """Every how many epochs the gradient was looked at; 0 for never."""


MANY_TERMS = ("task", "kd", "dkd", "review_kd", "hint", "hint#2", "at", "similarity")

SKETCHES = (
    Sketch("01-train", 354, 1.004, 1_084_554, 162_600_000, 8, terms=("cross_entropy",)),
    Sketch("02-distill", 355, 3.21, 77_050, 18_040_000, 10, terms=MANY_TERMS, looks=2),
    Sketch("03-prune", 353, 4.95, 46_218, 10_790_000),
    Sketch("04-factorize", 353, 4.87, 41_930, 9_870_000, 2, looks=0),
    Sketch("05-sharpen", 354, 4.90, 41_930, 9_870_000, 0),
    Sketch("06-quantize", 352, 11.62, 41_710, 9_870_000, 2, precision="int8"),
)


def latency(batch: int, p50_ms: float, samples: int, spread: float = 0.012) -> Latency:
    """A distribution with the usual long tail."""
    return Latency(
        batch=batch,
        samples=samples,
        p50_ms=p50_ms,
        p50_interval=Interval(low=p50_ms * (1 - spread), high=p50_ms * (1 + spread)),
        p90_ms=1.08 * p50_ms,
        p90_interval=Interval(low=1.06 * p50_ms, high=1.11 * p50_ms),
        p99_ms=1.31 * p50_ms if samples >= 1000 else None,
        p99_interval=Interval(low=1.2 * p50_ms, high=1.5 * p50_ms) if samples >= 1000 else None,
        mean_ms=1.03 * p50_ms,
        throughput=1000 * batch / (1.03 * p50_ms),
        outliers=samples // 70,
    )


def timing(batch: int, speedup: float, teacher_p50_ms: float) -> Comparison:
    """A step's engine in turns with the teacher's."""
    scale = 1.0 if batch == 1 else 0.7 * batch
    interval = Interval(low=0.985 * speedup, high=1.016 * speedup)
    samples = 1040 if batch == 1 else 420
    return Comparison(
        batch=batch,
        ratio=speedup,
        interval=interval,
        verdict=verdict_of(speedup, interval),
        baseline=latency(batch, teacher_p50_ms * scale, samples),
        candidate=latency(batch, teacher_p50_ms * scale / speedup, samples),
    )


def audit() -> Audit:
    """Of a network of which everything but the last layer runs in int8."""
    names = ["conv1", *(f"layer{i}.0.conv{j}" for i in (1, 2, 3) for j in (1, 2))]
    layers = [
        LayerPrecision(
            name=f"/{name}/Conv", kind="Conv", precision="int8", macs=1_234_560, reason="runs as QLinearConv"
        )
        for name in names
    ]
    reason = "its output is read as float by the graph's output"
    layers.append(LayerPrecision(name="/linear/Gemm", kind="Gemm", precision="float", macs=640, reason=reason))
    total = sum(layer.macs for layer in layers)
    return Audit(layers=tuple(layers), int8_share=1 - 640 / total, min_int8_share=0.9)


def engine(sketch: Sketch, teacher_p50_ms: float, *, threads: int = 1, count: int = TEST_SAMPLES) -> EngineMeasurement:
    """The engine of a step, measured at batch 1 and 32."""
    quantized = sketch.precision == "int8"
    return EngineMeasurement(
        target=f"onnxruntime cpu {sketch.precision}",
        runtime="onnxruntime",
        device="cpu",
        precision=sketch.precision,
        threads=threads,
        file=f"{sketch.name}/onnxruntime-cpu-{sketch.precision}/model.onnx",
        file_bytes=sketch.parameters * (1 if quantized else 4) + 21_000,
        score=Accuracy(correct=sketch.correct, count=count),
        latency=(timing(1, sketch.speedup, teacher_p50_ms), timing(32, 0.9 * sketch.speedup, teacher_p50_ms)),
        peak_memory_bytes=None if sketch.name.startswith("02") else 84_300_000 + sketch.parameters,
        parity=Parity(
            reference="fake-quantized model" if quantized else "float model",
            samples=128,
            max_absolute=3.1e-6,
            max_relative=2.4e-2 if quantized else 1.2e-6,
            mean_relative=4.0e-3 if quantized else 2.0e-7,
            agreement=0.9921875 if quantized else 1.0,
            passed=True,
            limit="98 % of the predictions agree" if quantized else "relative error at most 0.001",
        ),
        audit=audit() if quantized else None,
        operators=operators(LAYERS, teacher_p50_ms / sketch.speedup, 0.01),
    )


def curve(sketch: Sketch) -> tuple[CurvePoint, ...]:
    """A loss that falls, each of its terms at its own pace."""
    return tuple(
        CurvePoint(
            epoch=epoch,
            loss=sum(_term(index, epoch, sketch.epochs) for index in range(len(sketch.terms))),
            terms={name: _term(index, epoch, sketch.epochs) for index, name in enumerate(sketch.terms)},
            gradient_shares=_shares(sketch, epoch) if sketch.looks and epoch % sketch.looks == 0 else None,
            validation=min(0.99, 0.93 + 0.012 * epoch - 0.004 * (epoch % 3)),
            learning_rate=0.1 * 0.5**epoch,
        )
        for epoch in range(1, sketch.epochs + 1)
    )


LAYERS = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "linear")

SIZES = (1.9, 0.8, 0.4, 90.0, 3e-4, 0.02, 7.0, 1e-3)
"""Of each term at the start; the fourth is warmed up from zero, the fifth decays to zero."""


def _term(index: int, epoch: int, epochs: int) -> float:
    kind = index % len(SIZES)
    value = SIZES[kind] * (math.exp(-0.35 * epoch) + 0.04 / (kind + 1))
    if kind == 3:
        return value * min(1.0, (epoch - 1) / 3)
    if kind == 4:
        return value * max(0.0, 1 - epoch / max(epochs - 1, 1))
    return value


def _shares(sketch: Sketch, epoch: int) -> dict[str, float]:
    """Smaller ones grow at the cost of the larger ones."""
    lengths = [_term(index, epoch, sketch.epochs) ** (1 / (1 + 0.5 * epoch)) for index in range(len(sketch.terms))]
    return {name: length / sum(lengths) for name, length in zip(sketch.terms, lengths, strict=True)}


def facts(sketch: Sketch) -> dict[str, JsonValue]:
    """What such a stage would say."""
    if "quantize" in sketch.name:
        return {"batch norms folded": 8, "weight bits": "7 (this processor has no VNNI)", "quantized weights": 8}
    if "factorize" in sketch.name:
        rows: list[JsonValue] = [
            {
                "path": f"layer{i}.0.conv{j}",
                "kind": "tucker2",
                "ranks": [16, 8 * i],
                "energy": 0.95 + 0.004 * j,
                "macs_before": 2_359_296,
                "macs_after": 1_179_648 + 65_536 * j,
                "decision": "factorized" if j == 1 else "kept: its factors would not cost less",
            }
            for i in (1, 2, 3)
            for j in (1, 2)
        ]
        return {"layers": rows, "factorized layers": "3 of 6"}
    if "distill" in sketch.name:
        knowledge: list[JsonValue] = [
            {"term": "kd", "method": "kd", "weight": 0.9, "taps": ""},
            {"term": "review_kd", "method": "review_kd", "weight": 5, "taps": "layer1→layer1, layer2→layer2"},
            {"term": "at", "method": "at", "weight": 1000, "taps": "layer1→layer1, layer2→layer2, layer3→layer3"},
        ]
        return {
            "student": {"name": "resnet", "depth": 8, "width": 16, "shortcut": "conv"},
            "knowledge": knowledge,
            "teacher cache": {"asked": 1437, "computed": 0, "hit rate": 1.0, "bytes": 57480},
        }
    return {}


def machine(cpu_model: str = "AMD EPYC 7R13 Processor", onnxruntime: str = "1.32.0") -> Machine:
    """A small server."""
    return Machine(
        cpu_model=cpu_model,
        cpu_flags=("avx", "avx2", "fma", "f16c"),
        cores=2,
        threads=2,
        memory_bytes=8_232_443_904,
        system="Linux 6.8.0 x86_64",
        python="3.11.9",
        libraries={"torch": "2.13.0", "onnx": "1.23.0", "onnxruntime": onnxruntime},
        load=(0.42, 0.51, 0.48),
        gpu=None,
    )


GPU_STATES = (
    DeviceState(
        sm_clock_mhz=1980,
        max_sm_clock_mhz=1980,
        memory_clock_mhz=2619,
        temperature_c=41,
        power_w=118.4,
        throttling=(),
    ),
    DeviceState(
        sm_clock_mhz=1410,
        max_sm_clock_mhz=1980,
        memory_clock_mhz=2619,
        temperature_c=79,
        power_w=None,
        throttling=("power cap", "heat"),
    ),
)


def operators(names: Sequence[str], total_ms: float, own_ms: float = 0.0) -> tuple[OperatorTime, ...]:
    """A convolution in each layer, the later ones the shorter, and a reordering by the runtime itself."""
    weights = [1 / (index + 1) for index in range(len(names))]
    found = [
        OperatorTime(layer=name, operator="Conv", ms=total_ms * weight / sum(weights))
        for name, weight in zip(names, weights, strict=True)
    ]
    return (*found, *([OperatorTime(layer="", operator="ReorderInput", ms=own_ms)] if own_ms else []))


def ranked(engine: EngineMeasurement, fastest: EngineMeasurement) -> Ranked:
    """A final engine in turns with the fastest one, at batch 1."""
    candidate, baseline = engine.latency[0].candidate, fastest.latency[0].candidate
    ratio = baseline.p50_ms / candidate.p50_ms
    interval = Interval(low=0.975 * ratio, high=1.025 * ratio)
    verdict = verdict_of(ratio, interval)
    comparison = Comparison(
        batch=1, ratio=ratio, interval=interval, verdict=verdict, baseline=baseline, candidate=candidate
    )
    return Ranked(target=engine.target, comparison=comparison)


def p50_of(engine: EngineMeasurement) -> float:
    """At batch 1."""
    return engine.latency[0].candidate.p50_ms


def with_several_targets(report: Report, *, throttled: bool = True) -> Report:
    """The same run with engines for OpenVINO and for a GPU beside ONNX Runtime's, ranked, with energy."""
    as_float, final = (
        each.model_copy(update={"energy": NotMeasured(reason="RAPL cannot be read here")}) for each in report.engines
    )
    by_openvino = final.model_copy(
        update={
            "target": "openvino cpu int8",
            "runtime": "openvino",
            "file": "06-quantize/openvino-cpu-int8/model.xml",
            "latency": tuple(timing(batch, 11.9, TEACHER_P50_MS) for batch in (1, 32)),
            "energy": Energy(source="RAPL", millijoules=4.31, idle_w=21.2, busy_w=38.6, seconds=10.0, samples=41_230),
        }
    )
    on_gpu = as_float.model_copy(
        update={
            "target": "inductor cuda fp16",
            "runtime": "inductor",
            "device": "cuda",
            "precision": "fp16",
            "file": "06-quantize/inductor-cuda-fp16/model.pt2",
            "latency": tuple(timing(batch, 7.1, TEACHER_P50_MS) for batch in (1, 32)),
            "device_latency": (latency(1, 0.093, 1040), latency(32, 0.41, 420)),
            "device_memory_bytes": 611_000_000,
            "device_states": GPU_STATES if throttled else (GPU_STATES[0], GPU_STATES[0]),
            "energy": Energy(source="NVML", millijoules=31.7, idle_w=70.1, busy_w=139.0, seconds=12.0, samples=26_080),
        }
    )
    engines = (as_float, final, by_openvino, on_gpu)
    order = sorted(engines, key=p50_of)
    ranking = tuple(ranked(each, order[0]) for each in order)
    on = report.machine.model_copy(update={"gpu": "NVIDIA H100 80GB HBM3"})
    last = report.steps[-1].model_copy(update={"engine": final})
    steps = (*report.steps[:-1], last)
    changes = {"engines": engines, "ranking": ranking, "machine": on, "steps": steps}
    return Report.model_validate(report.model_copy(update=changes).model_dump())


def profile_text(
    names: Sequence[str] = ("model.onnx",),
    *,
    p50_ms: float = 0.3,
    on: Machine | None = None,
    layers: tuple[OperatorTime, ...] | None = None,
    beside: Sequence[float] = (),
) -> str:
    """What `potstill profile --json` writes of files, each one slower than the one before.

    `beside` has each one's speed in turns with the first, where that was found.
    """
    entries = [
        {
            "name": name,
            "file": f"exported/{name}",
            "sha256": 64 * "0",
            "runtime": "onnxruntime",
            "device": "cpu",
            "precision": None,
            "threads": 1,
            "latency": [latency(1, p50_ms * (1 + index), 1040).model_dump()],
            "peak_memory_bytes": 84_000_000,
            "layers": None if layers is None else [each.model_dump() for each in layers],
            **({"beside_first": [timing(1, beside[index], p50_ms).model_dump()]} if beside else {}),
        }
        for index, name in enumerate(names)
    ]
    content = {
        "version": 1,
        "kind": "profile",
        "machine": (on or machine()).model_dump(),
        "started": "2026-05-05T10:00:00Z",
        "entries": entries,
    }
    return json.dumps(content)


def as_regression(report: Report) -> Report:
    """The same run as if it had been judged by an error, which steps raise and lower, sample by sample."""
    values = [0.31 + 0.02 * (number % 3) for number in range(len(report.steps))]

    def scored(engine: EngineMeasurement, value: float) -> EngineMeasurement:
        interval = Interval(low=0.96 * value, high=1.05 * value)
        score = MeanScore(metric=RMSE, count=TEST_SAMPLES, value=value, interval=interval)
        return engine.model_copy(update={"score": score})

    def change(before: float, after: float) -> ScoreChange:
        value = after - before
        interval = Interval(low=value - 0.001, high=value + 0.0012)
        return ScoreChange(metric=RMSE, value=value, interval=interval)

    steps = [
        step.model_copy(
            update={
                "engine": scored(step.engine, value),
                "change": change(values[number - 1], value) if number else None,
                "change_since_teacher": change(values[0], value) if number else None,
            }
        )
        for number, (step, value) in enumerate(zip(report.steps, values, strict=True))
    ]
    goal = GoalResult(goal="max_worsening", limit=0.05, value=0.02, met=True, sentence="max_worsening met: as asked")
    engines = tuple(scored(engine, values[-1]) for engine in report.engines)
    changes = {"steps": tuple(steps), "engines": engines, "goals": (goal,), "classes": (), "name": "denoise"}
    return Report.model_validate(report.model_copy(update=changes).model_dump())


def sample_report(
    sketches: Sequence[Sketch] = SKETCHES,
    *,
    name: str = "digits",
    teacher_p50_ms: float = TEACHER_P50_MS,
    on: Machine | None = None,
    threads: int = 1,
    count: int = TEST_SAMPLES,
    recipe: str = RECIPE,
    data: str = "1,797 handwritten digits, 32×32, a fifth of them for testing",
) -> Report:
    """A finished run with one step for each sketch, the first one the teacher."""
    steps = tuple(
        StepReport(
            name=sketch.name,
            stage=sketch.name.partition("-")[2],
            reused=index == 0,
            seconds=7.3 * sketch.epochs + 0.4,
            parameters=sketch.parameters,
            macs=sketch.macs,
            facts=facts(sketch),
            curve=curve(sketch),
            engine=engine(sketch, teacher_p50_ms * (1 + 0.004 * index), threads=threads, count=count),
        )
        for index, sketch in enumerate(sketches)
    )
    last = sketches[-1]
    as_float = Sketch(last.name, last.correct, last.speedup / 2.4, last.parameters, last.macs)
    final = steps[-1].engine
    speedup = final.latency[0].ratio
    return Report(
        name=name,
        recipe=recipe,
        recipe_hash="5d0c9e3f7a4b1d26",
        seed=17,
        started=datetime(2026, 5, 4, 9, 30, tzinfo=UTC),
        seconds=163.2,
        overhead_seconds=2.8,
        machine=on or machine(),
        data=data,
        classes=tuple("0123456789"),
        steps=steps,
        engines=(engine(as_float, teacher_p50_ms, threads=threads, count=count), final),
        goals=(
            GoalResult(
                goal="max_accuracy_drop",
                limit=0.01,
                value=0.0056,
                met=True,
                sentence="max_accuracy_drop met: accuracy fell by 0.56 points, at most 0.01 asked",
            ),
            GoalResult(
                goal="min_speedup",
                limit=12.0,
                value=speedup,
                met=speedup >= 12,
                sentence=f"min_speedup {'met' if speedup >= 12 else 'MISSED'}: {speedup:.2f}x the teacher's speed at "
                "batch 1, at least 12x asked",
            ),
            GoalResult(
                goal="max_p99_ms",
                limit=1.0,
                value=None,
                met=False,
                sentence="max_p99_ms MISSED: p99 was not measured: 420 samples, 1,000 needed",
            ),
        ),
    )
