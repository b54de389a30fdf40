"""Facts about recipes: what is refused and in which words, and what comes out of a sound one."""

import importlib.resources
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.export.target import targets
from potstill.pipeline.errors import RecipeError
from potstill.pipeline.models import PythonModel
from potstill.pipeline.recipe import Recipe, load_recipe, recipe_file, recipe_yaml, stage_choices, targets_from
from potstill.pipeline.recipe_schema import json_schema
from potstill.stages.distill import Distill
from potstill.stages.knowledge.objective import methods
from potstill.stages.knowledge.response.kd import SoftTargets
from potstill.stages.knowledge.response.logits import RawLogits
from potstill.stages.quantize import Quantize

SOURCES = "cifar, digits, huggingface, image_folder, npz, sound, text, my_data.py:make"

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))

SOUND = """\
name: small
data: {source: digits, batch_size: 64}
teacher:
  model: {name: resnet, depth: 8, width: 8}
stages:
  - stage: train
    epochs: 1
  - stage: distill
    student: {from: teacher, width: 0.5}
    epochs: 1
  - stage: quantize
targets:
  - {runtime: onnxruntime, precision: [fp32, int8]}
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    file = tmp_path / "a.yaml"
    file.write_text(SOUND)
    return file


def problems(file: Path, *overrides: str) -> list[str]:
    """The lines of the error, without the folder."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    return str(caught.value).replace(f"{file.parent}/", "").splitlines()


def problems_of(text: str, file: Path) -> list[str]:
    file.write_text(text)
    return problems(file)


class TestASoundRecipe:
    def test_holds_the_classes_that_its_keys_name(self, written: Path) -> None:
        recipe = load_recipe(written)
        assert [type(stage).__name__ for stage in recipe.stages] == ["Train", "Distill", "Quantize"]
        assert type(recipe.data).__name__ == "Digits"
        assert recipe.targets[0].precision == ("fp32", "int8")
        assert recipe.seed == 17

    def test_written_out_with_all_defaults_loads_as_an_equal_one(self, written: Path) -> None:
        recipe = load_recipe(written)
        text = recipe_yaml(recipe)
        assert "learning_rate: 0.05" in text
        assert "from: teacher" in text
        written.write_text(text)
        assert load_recipe(written) == recipe

    def test_takes_the_users_own_model_and_data_by_file_and_function(self, written: Path) -> None:
        recipe = load_recipe(
            written, ["teacher.model=my_models.py:make_teacher", "data={source: my_data.py:make, batch_size: 8}"]
        )
        assert recipe.teacher.model == PythonModel(python="my_models.py:make_teacher")
        assert recipe.data.source == "my_data.py:make"
        assert recipe.data.batch_size == 8
        written.write_text(recipe_yaml(recipe))
        assert load_recipe(written) == recipe

    def test_needs_no_train_stage_where_the_teacher_has_weights(self, written: Path) -> None:
        recipe = load_recipe(written, ["teacher.weights=w.safetensors", "stages=[{stage: quantize}]"])
        assert recipe.teacher.weights == Path("w.safetensors")

    @pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
    def test_is_every_file_in_configs(self, file: Path, tmp_path: Path) -> None:
        recipe = load_recipe(file)
        (tmp_path / "resolved.yaml").write_text(recipe_yaml(recipe))
        assert load_recipe(tmp_path / "resolved.yaml") == recipe

    def test_is_found_by_the_bare_name_of_one_that_is_packaged(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        packaged = Path(str(importlib.resources.files("potstill.configs") / "digits.yaml"))
        assert recipe_file("digits") == packaged
        assert recipe_file("configs/digits.yaml") == Path("configs/digits.yaml")
        assert recipe_file("nothing") == Path("nothing")
        (tmp_path / "digits").touch()
        assert recipe_file("digits") == Path("digits")


PAIRS = re.findall(
    r"^\| (.+?) \| `({name.+?})` \| `({name.+?})` \|",
    (ROOT / "docs/results/knowledge-cifar.md").read_text(),
    re.MULTILINE,
)


@pytest.mark.parametrize(("teacher", "student"), [pair[1:] for pair in PAIRS], ids=[pair[0] for pair in PAIRS])
def test_the_pairs_in_the_docs_are_settings_of_their_recipe(teacher: str, student: str) -> None:
    overrides = [f"teacher.model={teacher}", f"stages.distill.student={student}"]
    recipe = load_recipe(ROOT / "configs/knowledge-cifar100.yaml", overrides)
    assert recipe.teacher.model != recipe.stages[-1].model_dump()["student"]


class TestAllErrorsAtOnce:
    def test_each_has_file_line_path_what_is_allowed_and_the_nearest_match(self, written: Path) -> None:
        text = """\
name: a b
seed: true
data: {source: digit}
teacher:
  model: {name: resnet, dept: 8, depth: 21}
stages:
  - stage: train
    epocs: 3
  - stage: distill
    student: {from: teacher, widht: 0.5}
    epochs: 1.5
    knowledge: [{kd: {temprature: 4}}, {kdd: {}}]
  - quantize
  - stage: quantise
  - {}
  - stage: quantize
    scheme: int4
    calibration: {samples: 0}
targets:
  - {runtime: onnxruntime, precision: [fp8], threads: "1"}
goal: 3
"""
        stages = ", ".join(stage_choices())
        assert problems_of(text, written) == [
            "a.yaml:1: name: must be text of the form ^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$, got 'a b'",
            "a.yaml:2: seed: must be a whole number, got true",
            f"a.yaml:3: data: `source: digit` is unknown; did you mean `digits`? allowed: {SOURCES}",
            "a.yaml:5: teacher.model.depth: a depth is 6 n + 2, such as 8, 14, 20, 32 or 56; "
            "the nearest is 20 (got 21)",
            "a.yaml:5: teacher.model.dept: unknown key; did you mean `depth`? "
            "allowed: name, depth, width, stem, stride, shortcut",
            "a.yaml:7: stages[0].epochs: is missing; it must be a whole number",
            "a.yaml:8: stages[0].epocs: unknown key; did you mean `epochs`? allowed: epochs, optimizer, learning_rate, "
            "warmup, momentum, weight_decay, norm_bias_rate, max_gradient_norm, stage, name",
            "a.yaml:12: stages[1].knowledge[0].kd.temprature: unknown key; did you mean `temperature`? "
            "allowed: weight, warmup, decay, until, standardize, temperature",
            f"a.yaml:12: stages[1].knowledge[1].kdd: unknown key; did you mean `kd`? allowed: {', '.join(methods())}",
            "a.yaml:11: stages[1].epochs: must be a whole number, got 1.5",
            "a.yaml:10: stages[1].student.widht: unknown key; did you mean `width`? allowed: from, width, depth, "
            "weights",
            f"a.yaml:13: stages[2]: must be a mapping with the key `stage`, got 'quantize'; allowed: {stages}",
            f"a.yaml:14: stages[3]: `stage: quantise` is unknown; did you mean `quantize`? allowed: {stages}",
            f"a.yaml:15: stages[4]: the key `stage` is missing; allowed: {stages}",
            "a.yaml:17: stages[5].scheme: must be one of the allowed, got 'int4'; did you mean `int8`? "
            "allowed: int8, int8_weights, int4_weights",
            "a.yaml:18: stages[5].calibration.samples: must be greater than or equal to 1, got 0",
            "a.yaml:20: targets[0].precision[0]: must be one of the allowed, got 'fp8'; "
            "allowed: fp32, fp16, bf16, int8, int8_weights, int4_weights",
            "a.yaml:20: targets[0].threads: must be a whole number, got '1'",
            "a.yaml:21: goal: unknown key; did you mean `goals`? "
            "allowed: name, seed, task, precision, compile, data, teacher, stages, targets, goals",
        ]

    def test_missing_keys_say_what_they_must_be(self, written: Path) -> None:
        assert problems_of("seed: 3\n", written) == [
            "a.yaml:1: name: is missing; it must be text",
            f"a.yaml:1: data: is missing; it must be a mapping with the key `source`: {SOURCES}",
            "a.yaml:1: teacher: is missing; it must be a mapping",
            "a.yaml:1: stages: is missing; it must be a list",
            "a.yaml:1: targets: is missing; it must be a list",
        ]

    def test_an_override_is_named_in_place_of_a_line(self, written: Path) -> None:
        assert problems(written, "stages.distill.epochs=x", "sede=3", "targets=[]") == [
            "--set stages.distill.epochs=x: stages[1].epochs: must be a whole number, got 'x'",
            "--set targets=[]: targets: must have at least 1 entries",
            "--set sede=3: sede: unknown key; did you mean `seed`? "
            "allowed: name, seed, task, precision, compile, data, teacher, stages, targets, goals",
        ]

    def test_a_network_that_there_is_not_and_a_setting_that_it_does_not_take(self, written: Path) -> None:
        networks = "ds_cnn, hf, mobilenet_v2, plain, resnet, resnet_imagenet, shufflenet_v1, shufflenet_v2, "
        networks += "text_encoder, timm, torchvision, vgg, vit, wrn"
        for given, told in {
            "{name: resnext}": f": `name: resnext` is unknown; did you mean `resnet`? allowed: {networks}",
            "{depth: 20}": f": the key `name` is missing; allowed: {networks}",
            "{name: vgg, depth: 9}": ".depth: must be one of the allowed, got 9; allowed: 8, 11, 13, 16, 19",
            "{name: wrn, wide: 2}": ".wide: unknown key; did you mean `widen`? allowed: name, depth, widen",
            "{name: plain, stages: [[8], 3]}": ".stages[1]: must be a list, got 3",
            "{name: plain, stages: [[8], [true]]}": ".stages[1][0]: must be a whole number, got true",
            "{name: vit, width: 20}": ": `width` 20 does not divide into 3 `heads`; the nearest is 21",
        }.items():
            assert problems(written, f"teacher.model={given}") == [f"--set teacher.model={given}: teacher.model{told}"]

    def test_bfloat16_is_refused_on_the_cpu_with_the_reason(self, written: Path) -> None:
        (line,) = problems(written, "targets.0.precision=[fp32, bf16]")
        assert "ONNX Runtime's CPU has no bfloat16 kernels" in line
        assert "allowed: fp32, fp16, int8" in line

    @pytest.mark.parametrize("key", ["name", "data", "teacher", "stages", "targets", "teacher.model", "stages.0"])
    @pytest.mark.parametrize("value", ["3", "te xt", "[1]", "{a: 1}", "null", "true"])
    def test_any_value_of_a_wrong_type_is_told_at_its_key(self, key: str, value: str, written: Path) -> None:
        lines = problems(written, f"{key}={value}")
        assert all(line.startswith(f"--set {key}={value}") for line in lines)
        assert not any("a list, got a list" in line or "{'" in line for line in lines)


class TestPartsThatDoNotFit:
    def test_a_teacher_without_weights_needs_a_train_stage_first(self, written: Path) -> None:
        expected = (
            "a.yaml:3: teacher: has no weights: give `weights: file.safetensors`, "
            "or begin `stages` with a `train` stage"
        )
        written.write_text(SOUND.replace("  - stage: train\n    epochs: 1\n", ""))
        assert problems(written) == [expected]

    def test_an_int8_engine_needs_a_quantize_stage_and_the_other_way_round(self, written: Path) -> None:
        assert problems_of(SOUND.replace("  - stage: quantize\n", ""), written) == [
            "a.yaml:12: targets[0].precision: int8 needs a `quantize` stage; add one to `stages`, or leave int8 out"
        ]
        assert problems_of(SOUND.replace(", int8", ""), written) == [
            "a.yaml:12: targets: no target has int8, so what `quantize` does would be lost; add int8 to a `precision`"
        ]

    def test_fp8_is_made_by_the_scheme_int8(self, written: Path) -> None:
        gpu = SOUND.replace(
            "runtime: onnxruntime, precision: [fp32, int8]", "runtime: tensorrt, precision: [fp32, fp8]"
        )
        written.write_text(gpu)
        assert load_recipe(written).targets[0].precision == ("fp32", "fp8")
        assert problems_of(gpu.replace("  - stage: quantize\n", ""), written) == [
            "a.yaml:12: targets[0].precision: fp8 needs a `quantize` stage; add one to `stages`, or leave fp8 out"
        ]
        other = gpu.replace("- stage: quantize", "- {stage: quantize, scheme: int4_weights}")
        assert problems_of(other, written)[0].endswith(
            "fp8 needs a `quantize` stage with `scheme: int8`, and the recipe's has `scheme: int4_weights`; change one "
            "of them"
        )

    def test_an_engine_of_stored_weights_needs_that_scheme_and_the_other_way_round(self, written: Path) -> None:
        sound = SOUND.replace("- stage: quantize", "- {stage: quantize, scheme: int4_weights}").replace(
            "int8]", "int4_weights]"
        )
        written.write_text(sound)
        assert load_recipe(written).targets[0].precision == ("fp32", "int4_weights")
        assert problems_of(SOUND.replace("int8]", "int4_weights]"), written) == [
            "a.yaml:13: targets[0].precision: int4_weights needs a `quantize` stage with `scheme: int4_weights`, "
            "and the recipe's has `scheme: int8`; change one of them",
            "a.yaml:12: targets: no target has int8, so what `quantize` does would be lost; add int8 to a `precision`",
        ]
        assert problems_of(sound.replace("  - {stage: quantize, scheme: int4_weights}\n", ""), written) == [
            "a.yaml:12: targets[0].precision: int4_weights needs a `quantize` stage with `scheme: int4_weights`; "
            "add one to `stages`, or leave int4_weights out"
        ]

    @pytest.mark.parametrize(
        ("settings", "problem"),
        [
            ("group_size: 64", "`group_size` is for `scheme: int8_weights` or `int4_weights`; int8 has one scale"),
            ("scheme: int4_weights, weight_bits: 8", "`weight_bits` is for `scheme: int8`; int4_weights says it"),
            ("scheme: int8_weights, learn_steps: true", "`learn_steps` is for `scheme: int8`; the grids of"),
            ("scheme: int8_weights, calibration: {method: mse}", "which int8_weights leaves in float"),
            ("scheme: int8_weights, grids: symmetric", "`grids` are those of activations, which int8_weights leaves"),
            (
                "scheme: int4_weights, learn_steps: true",
                "`learn_steps` is for `scheme: int8`; the grids of int4_weights",
            ),
        ],
    )
    def test_settings_of_another_scheme_are_refused(self, settings: str, problem: str, written: Path) -> None:
        text = SOUND.replace("- stage: quantize", f"- {{stage: quantize, {settings}}}")
        assert problem in problems_of(text, written)[0]

    def test_steps_of_one_name_targets_of_one_engine_and_impossible_orders_are_told_together(
        self, written: Path
    ) -> None:
        text = SOUND.replace("targets:\n", "  - stage: quantize\ntargets:\n") + "  - {runtime: onnxruntime}\n"
        assert problems_of(text, written) == [
            "a.yaml:12: stages[3]: the model is already quantized by an earlier `quantize` stage; keep one of them",
            "a.yaml:12: stages[3]: stages[2] is called `quantize`, too; give one of them another `name:`, "
            "such as `quantize-2`",
            "a.yaml:15: targets[1]: is the same as targets[0] (onnxruntime cpu); put them into one",
        ]

    def test_a_step_is_not_called_like_the_teacher(self, written: Path) -> None:
        assert problems(written, "stages.distill.name=teacher") == [
            "a.yaml:8: stages[1]: no step can be called `teacher`; give it another `name`"
        ]

    def test_a_recipe_made_in_python_is_checked_alike(self, written: Path) -> None:
        values = dict(load_recipe(written))
        with pytest.raises(ValidationError, match="begin `stages` with a `train` stage"):
            Recipe(**values | {"stages": values["stages"][1:]})


class TestTheJsonSchema:
    def test_titles_every_choice_by_its_name_in_recipes_and_needs_its_key(self) -> None:
        definitions = json_schema()["$defs"]
        by_title: dict[str, Any] = {each.get("title"): each for each in definitions.values()}
        for name in stage_choices():
            assert by_title[name]["required"][0] == "stage"
            assert by_title[name]["properties"]["stage"]["const"] == name
            assert by_title[name]["additionalProperties"] is False
        for name in targets():
            assert by_title[name]["required"][0] == "runtime"

    def test_describes_keys_by_the_docstrings_of_their_fields(self) -> None:
        schema = json_schema()
        assert schema["properties"]["seed"]["description"] == "Everything random derives from it."
        assert "peak rate" in schema["$defs"]["Train"]["properties"]["learning_rate"]["description"]

    def test_is_plain_json(self) -> None:
        schema = json_schema()
        assert json.loads(json.dumps(schema)) == schema


class TestTask:
    def test_of_numbers_learns_the_teachers_outputs_wherever_nothing_else_is_said(self, written: Path) -> None:
        recipe = load_recipe(written, ["task=regression"])
        _, distill, quantize = recipe.stages
        assert isinstance(distill, Distill)
        assert isinstance(quantize, Quantize)
        assert distill.knowledge == quantize.recover.knowledge == (RawLogits(),)
        again = written.with_name("again.yaml")
        again.write_text(recipe_yaml(recipe))
        assert load_recipe(again) == recipe

    def test_of_the_users_own_does_so_too_and_what_is_said_stays(self, written: Path) -> None:
        recipe = load_recipe(written, ["task=my_task.py:make", "stages.quantize.recover.knowledge=[kd]"])
        assert isinstance(recipe.stages[2], Quantize)
        assert recipe.stages[2].recover.knowledge == (SoftTargets(),)
        assert load_recipe(written).stages[2] == Quantize()

    def test_that_there_is_not_is_told_with_the_nearest(self, written: Path) -> None:
        assert problems(written, "task=regresion") == [
            "--set task=regresion: task: must be one of the allowed; did you mean `regression`? "
            "allowed: classification, regression, my_task.py:make (got 'regresion')"
        ]

    def test_without_classes_refuses_what_is_for_classes(self, written: Path) -> None:
        lines = problems(
            written,
            "task=regression",
            "goals.max_accuracy_drop=0.01",
            "teacher.cache.top_k=3",
            "stages.distill.knowledge=[logits, kd]",
        )
        assert lines[0].endswith(
            "goals.max_accuracy_drop: is for a classification, and `task: regression` has no accuracy; give "
            "`max_worsening: 0.05`, a share of the teacher's metric"
        )
        assert "teacher.cache.top_k: keeps the largest log-probabilities of classes" in lines[1]
        assert (
            "stages[1].knowledge[1]: `kd` is for classes, of which it needs logits, and this task has none; use "
            in (lines[2])
        )
        assert "squared error to the teacher's outputs, or what lies inside the networks: `ab`, " in lines[2]
        assert "`dkd`" not in lines[2]

    def test_without_classes_refuses_it_in_a_recovery_too(self, written: Path) -> None:
        (first, second) = problems(
            written,
            "task=regression",
            "stages.quantize.recover.knowledge=[dkd]",
            "stages.quantize.recover.combine=confidence",
            "stages.quantize.recover.teachers=[teacher, distill]",
        )
        assert "stages[2].recover.knowledge[0]: `dkd` is for classes, of which it needs labels and logits" in first
        assert "stages[2].recover.combine: `combine: confidence` weighs teachers by the classes they know" in second

    def test_of_classes_refuses_the_goal_of_the_others(self, written: Path) -> None:
        (line,) = problems(written, "goals.max_worsening=0.1")
        assert "goals.max_worsening: is not for a classification; give `max_accuracy_drop`" in line

    def test_is_a_choice_or_a_pattern_for_editors(self) -> None:
        task = json_schema()["properties"]["task"]
        assert task["anyOf"][0]["enum"] == ["classification", "regression"]
        assert re.fullmatch(task["anyOf"][1]["pattern"], "folder/my_task.py:make")


class TestTargetsFrom:
    def test_more_targets_are_read_like_those_of_a_recipe(self) -> None:
        texts = ["{runtime: onnxruntime, threads: 2}", "{runtime: onnxruntime, precision: [int8], batch: [1, 8]}"]
        first, second = targets_from(texts, load_recipe(ROOT / "configs" / "digits.yaml"))
        assert (first.threads, first.precision, second.precision, second.batch) == (2, ("fp32",), ("int8",), (1, 8))

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("{runtime: onnxrunime}", "`runtime: onnxrunime` is unknown; did you mean `onnxruntime`?"),
            ("{runtime: onnxruntime, thread: 2}", "targets[0].thread: unknown key; did you mean `threads`?"),
            ("{runtime: onnxruntime, precision: [int4_weights]}", "has `scheme: int8`; change one of them"),
            ("onnxruntime", "must be a mapping with the key `runtime`, got 'onnxruntime'"),
            ("{runtime: [", "is not YAML"),
        ],
    )
    def test_a_wrong_one_is_told_as_in_a_recipe(self, text: str, problem: str) -> None:
        with pytest.raises(RecipeError, match=re.escape(f"--target {text}")) as caught:
            targets_from([text], load_recipe(ROOT / "configs" / "digits.yaml"))
        assert problem in str(caught.value)

    def test_the_same_target_twice_is_refused(self) -> None:
        with pytest.raises(RecipeError, match=r"targets\[1\]: is the same as targets\[0\]"):
            targets_from(["{runtime: onnxruntime}"] * 2, load_recipe(ROOT / "configs" / "digits.yaml"))
