"""What a run is going to do, settled before it does it: data, device, teacher, the steps and their fingerprints."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, JsonValue

from ..export.bench import TargetBench
from ..export.machine import machine_facts
from ..stages.stage import Context, Stage
from .artifact import Artifact
from .blueprint import Blueprint
from .data import Dataset
from .errors import ModelError, UsageError
from .fingerprints import code_fingerprint, fingerprint, sha256_of
from .journal import Journal
from .models import PythonModel, check_padding, check_runs, load_weights, own_weights, resolve, source_of
from .networks.network import Network
from .processes import ALONE, Processes
from .processor import has_bf16
from .progress import Progress
from .recipe import Recipe, recipe_yaml
from .seeding import derive, seeded
from .task import Task, task_named
from .teacher import Teacher
from .training import Precision

TEACHER = "teacher"
"""The name of the step that only takes over given weights."""

PADDING_SAMPLES = 16
"""Of unequal length, to find out whether padding changes what a model says."""

RESIDENT_SHARE = 0.25
"""Of a GPU's free memory may hold training samples; the networks need the rest."""

MODEL_CODE = (
    "stages",
    *(
        f"pipeline.{name}"
        for name in (
            "artifact",
            "augmentation",
            "blueprint",
            "bottleneck",
            "compiling",
            "factors",
            "fake_quantization",
            "front_end",
            "grouped_quantizer",
            "grouped_weights",
            "lengths",
            "models",
            "networks",
            "metric",
            "normalization",
            "own_task",
            "quantization",
            "random_regions",
            "seeding",
            "sharding",
            "sound_augmentation",
            "sparsity",
            "strong_augmentation",
            "taps",
            "task",
            "teacher",
            "teacher_cache",
            "tokenizer",
            "training",
            "written_out",
        )
    ),
)
"""The modules whose change can change an artifact."""


@dataclass(frozen=True)
class Step:
    """One step of a run."""

    number: int
    name: str
    stage: Stage | None
    """None for the step that takes over the teacher's weights."""
    fingerprint: str
    """Of everything that its artifact depends on."""

    @property
    def folder(self) -> str:
        """Its folder in the run, such as ``02-distill``."""
        return f"{self.number:02d}-{self.name}"


@dataclass(frozen=True)
class Plan:
    """A recipe with everything it refers to found and checked."""

    recipe: Recipe
    directory: Path
    data: Dataset
    task: Task
    device: torch.device
    precision: Precision

    @classmethod
    def of(cls, recipe: Recipe, directory: Path, progress: Progress | None = None) -> "Plan":
        """Load the data, choose device and precision; raises the errors of whatever cannot be found, used or built."""
        for target in recipe.targets:
            target.check()
        task = task_named(recipe.task, directory)
        data = recipe.data.load(directory, task.targets, progress)
        task.validate(data)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(recipe, directory, data, task, device, _precision(recipe, device))

    def _demand_weights(self) -> None:
        """ModelError where the teacher has weights that no stage trains to the end."""
        if self.teacher_weights is None and (not self.recipe.stages or self.recipe.stages[0].stage != "train"):
            raise ModelError(
                f"{self.recipe.teacher.model.model_dump(mode='json')}: its weights have no last layer for the classes; "
                "begin `stages` with a `train` stage, which trains one, or take a model that was trained to classify"
            )

    def settle(self, progress: Progress) -> None:
        """Keep the training samples on the run's GPU, where they leave enough of its memory; else says so."""
        if self.device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info()
        if self.data.train.nbytes <= RESIDENT_SHARE * free:
            self.data.train.settle(self.device)
            return
        progress.say(
            f"data: {self.data.train.nbytes / 1e9:.1f} GB of training samples are more than {RESIDENT_SHARE:.0%} of "
            f"the {free / 1e9:.1f} GB free on the GPU, so each batch is copied there"
        )

    @cached_property
    def teacher_model(self) -> Network | PythonModel:
        """The teacher's reference with its paths resolved."""
        return resolve(self.recipe.teacher.model, self.directory)

    @cached_property
    def teacher_weights(self) -> Path | None:
        """The file of the teacher's weights, which may be its network's own; None where the first stage trains them."""
        weights = self.recipe.teacher.weights
        return own_weights(self.teacher_model) if weights is None else self.directory / weights

    def teacher_of(self, artifact: Artifact, runs: Path | None = None) -> Teacher:
        """The run's teacher; its stored outputs lie where the recipe says, else among the `runs`, else in memory."""
        settings = self.recipe.teacher.cache
        folder = None if runs is None else runs / ".teacher-cache"
        return Teacher(artifact, settings, self.directory / settings.path if settings.path else folder)

    def initial_artifact(self) -> Artifact:
        """The teacher as the recipe gives it: with its weights, or with fresh ones for the first stage to train.

        Raises ModelError when it cannot be built, does not run on the data, or the weights do not fit;
        TaskError when the user's task does not take its outputs.
        """
        self._demand_weights()
        data = self.data
        blueprint = Blueprint(
            model=self.teacher_model,
            input_shapes=data.input_shapes,
            num_classes=data.num_outputs,
            vocabulary=data.vocabulary,
            front_end=data.front_end,
        )
        with seeded(self.recipe.seed, TEACHER):
            model = blueprint.build()
        if self.recipe.teacher.weights is not None:
            load_weights(model, self.directory / self.recipe.teacher.weights)
        outputs = check_runs(model, data.example(), data.output_shape)
        check_padding(model, data.test.batch(torch.arange(min(PADDING_SAMPLES, len(data.test)))).inputs)
        target = data.test.batch(torch.arange(len(outputs))).target
        self.task.loss(outputs, target)
        self.task.values(outputs, target)
        return Artifact(model=model.eval(), blueprint=blueprint)

    def steps(self, until: str | None = None) -> tuple[Step, ...]:
        """The steps in order, up to the one named `until`; raises UsageError when there is no such step."""
        steps = tuple(self._steps())
        if until is None:
            return steps
        names = [step.name for step in steps]
        if until not in names:
            raise UsageError(f"--until: there is no step `{until}`; the steps are {', '.join(names)}")
        return steps[: names.index(until) + 1]

    def _steps(self) -> Iterator[Step]:
        weights = self.teacher_weights
        current = fingerprint(
            self.teacher_model.model_dump(mode="json"),
            source_of(self.teacher_model),
            None if weights is None else sha256_of(weights),
            self.data.fingerprint,
            self.task.identity,
            self.data.batch_size,
            self.recipe.seed,
            self.recipe.teacher.cache.dtype,
            self.recipe.teacher.cache.top_k,
            self.precision,
            self.recipe.compile,
            self.device.type,
            torch.__version__,
            code_fingerprint(*MODEL_CODE),
        )
        number = 1
        if weights is not None:
            yield Step(number, TEACHER, None, current)
            number += 1
        for stage in self.recipe.stages:
            sources = (source_of(resolve(each, self.directory)) for each in _models(stage))
            built_by = [source for source in sources if source]
            current = fingerprint(current, stage.model_dump(mode="json"), *built_by, *self._measured_on(stage))
            yield Step(number, stage.step_name, stage, current)
            number += 1

    def _measured_on(self, stage: Stage) -> Iterator[JsonValue]:
        """What else the artifact of a stage depends on that times engines before it decides."""
        if stage.decides_by_engine:
            target = self.recipe.targets[0]
            yield from (target.build_settings(), target.measure_settings(), machine_facts().identity())

    def context(
        self,
        step: Step,
        checkpoints: Path,
        progress: Progress,
        journal: Journal,
        teacher: Teacher | None,
        artifacts: Mapping[str, Artifact],
        runs: Path | None = None,
        processes: Processes = ALONE,
    ) -> Context:
        """What the step's stage is given; its seed derives from the run's and the step's name.

        Latency tables lie among the `runs`, and are not kept without them.
        """
        return Context(
            device=self.device,
            precision=self.precision,
            compile=self.recipe.compile,
            data=self.data,
            task=self.task,
            step=step.folder,
            seed=derive(self.recipe.seed, step.name),
            checkpoints=checkpoints,
            progress=progress,
            journal=journal,
            directory=self.directory,
            teacher=teacher,
            artifacts=artifacts,
            bench=TargetBench(
                self.recipe.targets[0], self.data, None if runs is None else runs / ".latency-table", progress
            ),
            processes=processes,
        )

    @cached_property
    def recipe_yaml(self) -> str:
        """The resolved recipe."""
        return recipe_yaml(self.recipe)

    @cached_property
    def model_hash(self) -> str:
        """Of what shapes the model in the recipe, for the metadata of engines; goals and targets are not in it."""
        shaping: dict[str, Any] = self.recipe.model_dump(
            mode="json",
            include={"seed", "task", "data", "teacher", "stages", "precision", "compile"},
            exclude={
                "data": {"license", "workers", "memory_bytes", "cache"},
                "teacher": {"license": True, "cache": {"path", "max_bytes", "memory_bytes"}},
            },
        )
        return fingerprint(shaping)


def _models(settings: object) -> Iterator[Network | PythonModel]:
    """Every model that a stage's settings refer to, such as its student or a peer of it."""
    if isinstance(settings, Network | PythonModel):
        yield settings
    elif isinstance(settings, BaseModel):
        for _, value in settings:
            yield from _models(value)
    elif isinstance(settings, tuple):
        for value in cast("tuple[object, ...]", settings):
            yield from _models(value)


def _precision(recipe: Recipe, device: torch.device) -> Precision:
    if recipe.precision != "auto":
        return recipe.precision
    capable = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_bf16()
    return "bf16" if capable else "fp32"
