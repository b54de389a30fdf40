"""Facts about recipes whose students learn from earlier steps, from peers, or from themselves."""

from pathlib import Path

import pytest

from potstill.pipeline.errors import RecipeError
from potstill.pipeline.plan import Plan
from potstill.pipeline.recipe import load_recipe, recipe_yaml

RECIPE = """\
name: small
data: {source: digits, size: 8}
teacher:
  model: {name: resnet, depth: 14, width: 8}
stages:
  - {stage: train, epochs: 1}
  - stage: distill
    name: assistant
    student: {from: teacher, depth: 0.5}
    epochs: 1
  - stage: distill
    student: {from: teacher, width: 0.5}
    epochs: 1
    teachers:
      - teacher
      - assistant
  - stage: prune
    keep: {macs: 0.5}
    recover:
      teachers: [assistant]
targets:
  - {runtime: onnxruntime}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.yaml"


def problems(text: str, file: Path) -> list[str]:
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    return str(caught.value).replace(f"{file.parent}/", "").splitlines()


class TestTeachers:
    def test_are_the_runs_own_and_earlier_steps(self, file: Path) -> None:
        file.write_text(RECIPE)
        file.write_text(recipe_yaml(load_recipe(file)))
        assert load_recipe(file).stages[2].model_dump()["teachers"] == ("teacher", "assistant")

    def test_that_no_earlier_step_is_called_are_told_with_their_line(self, file: Path) -> None:
        text = RECIPE.replace("- assistant", "- asistant").replace("[assistant]", "[distill, prune]")
        assert problems(text, file) == [
            "a.yaml:16: stages[2].teachers[1]: `asistant` is no earlier step; did you mean `assistant`? "
            "allowed: teacher, train, assistant",
            "a.yaml:20: stages[3].recover.teachers[1]: `prune` is no earlier step; "
            "allowed: teacher, train, assistant, distill",
        ]

    def test_are_weighed_against_each_other_only_where_there_are_two(self, file: Path) -> None:
        text = RECIPE.replace("    teachers:\n      - teacher\n      - assistant\n", "    combine: confidence\n")
        assert problems(text, file) == [
            "a.yaml:11: stages[2]: `combine: confidence` weighs teachers against each other; "
            "name two or more in `teachers`"
        ]

    def test_are_needed_for_generations(self, file: Path) -> None:
        text = RECIPE.replace("      - teacher\n      - assistant\n", "      - teacher\n")
        assert problems(text.replace("    name: assistant", "    generations: 2\n    knowledge: [cs_kd]"), file)[0] == (
            "a.yaml:7: stages[1]: `generations` are taught by the one before, "
            "but `knowledge` has no method with a teacher"
        )


class TestPeers:
    @pytest.mark.parametrize(
        ("peers", "message"),
        [
            ("0", ": must be greater than or equal to 1, got 0"),
            ("[]", ": must have at least 1 entries"),
            ("teacher", ": must be a number or a list, got 'teacher'"),
            ("[{name: resnt}]", "[0]: `name: resnt` is unknown; did you mean `resnet`? allowed: "),
            ("[{name: resnet, dept: 8}]", "[0].dept: unknown key; did you mean `depth`? allowed: "),
        ],
    )
    def test_are_a_number_or_a_list_of_networks(self, peers: str, message: str, file: Path) -> None:
        text = RECIPE.replace("    name: assistant", f"    name: assistant\n    knowledge: [dml: {{peers: {peers}}}]")
        (line,) = problems(text, file)
        assert line.startswith(f"a.yaml:9: stages[1].knowledge[0].dml.peers{message}")

    def test_written_out_are_read_alike(self, file: Path) -> None:
        peers = "[teacher, {name: resnet, depth: 8}, nets.py:flat]"
        file.write_text(
            RECIPE.replace("    name: assistant", f"    name: assistant\n    knowledge: [dml: {{peers: {peers}}}]")
        )
        recipe = load_recipe(file)
        file.write_text(recipe_yaml(recipe))
        assert load_recipe(file) == recipe

    def test_that_the_users_own_code_makes_are_made_again_when_it_changes(self, file: Path) -> None:
        code = file.with_name("nets.py")
        code.write_text("def flat(num_classes): ...\n")
        knowledge = "    knowledge: [dml: {peers: [nets.py:flat]}]"
        file.write_text(RECIPE.replace("    name: assistant", f"    name: assistant\n{knowledge}"))

        def fingerprints() -> list[str]:
            return [step.fingerprint for step in Plan.of(load_recipe(file), file.parent).steps()]

        before = fingerprints()
        assert fingerprints() == before
        code.write_text("def flat(num_classes): return None\n")
        after = fingerprints()
        assert after[0] == before[0]
        assert not set(after[1:]) & set(before[1:])
