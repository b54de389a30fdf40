"""Facts about functions in the user's own files."""

import sys
from pathlib import Path

import pytest

from potstill.pipeline.errors import DataError, ModelError
from potstill.pipeline.python_reference import PythonReference


def reference(folder: Path, text: str = "mine.py:make", **files: str) -> PythonReference:
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)
    return PythonReference.parse(text, folder, ModelError)


@pytest.mark.parametrize("text", ["make", "mine:make", "mine.py", "mine.py:", "mine.py:a b", ":make"])
def test_text_that_names_no_function_in_a_file_is_refused(tmp_path: Path, text: str):
    with pytest.raises(ModelError, match=r"write it as path/to/file\.py:function"):
        reference(tmp_path, text)


def test_a_missing_file_is_told_with_the_nearest_one(tmp_path: Path):
    with pytest.raises(ModelError, match=r"there is no file .*minne\.py \(did you mean mine\.py\?\); paths start at"):
        reference(tmp_path, "minne.py:make", mine="")


def test_a_missing_function_is_told_with_the_nearest_one(tmp_path: Path):
    found = reference(tmp_path, "mine.py:make_teachr", mine="def make_teacher(): ...\ndef other(): ...\n")
    with pytest.raises(ModelError, match="has no function 'make_teachr'; did you mean 'make_teacher'"):
        found.load()


def test_a_name_that_is_no_function_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="has something else than a function called 'make'"):
        reference(tmp_path, mine="make = 3\n").load()


def test_paths_start_at_the_given_folder(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.py").write_text("def make(): return 7\n")
    assert reference(tmp_path, "sub/mine.py:make").call({}) == 7
    assert reference(tmp_path / "sub", "../sub/mine.py:make").call({}) == 7


def test_the_error_is_of_the_kind_the_caller_asks_for(tmp_path: Path):
    with pytest.raises(DataError):
        PythonReference.parse("gone.py:make", tmp_path, DataError)


class TestErrorsInTheUsersCode:
    def test_an_error_while_importing_names_the_users_line(self, tmp_path: Path):
        found = reference(tmp_path, mine="import json\n\nsettings = json.loads('{')\n\ndef make(): ...\n")
        with pytest.raises(ModelError, match=r"mine\.py:3, in <module>: JSONDecodeError.*\n    settings = json\.loads"):
            found.load()

    def test_a_missing_import_names_the_users_line(self, tmp_path: Path):
        with pytest.raises(ModelError, match=r"mine\.py:1, in <module>: ModuleNotFoundError: No module named 'torhc'"):
            reference(tmp_path, mine="import torhc\ndef make(): ...\n").load()

    def test_a_syntax_error_names_its_line(self, tmp_path: Path):
        with pytest.raises(ModelError, match=r"mine\.py:2: SyntaxError: .*\n    return \("):
            reference(tmp_path, mine="def make():\n    return (\n").load()

    def test_an_error_in_a_call_names_the_deepest_line_of_the_users(self, tmp_path: Path):
        found = reference(
            tmp_path,
            mine="from layers import deep\ndef make(): return deep()\n",
            layers="def deep():\n    return 1 / 0\n",
        )
        with pytest.raises(ModelError, match=r"layers\.py:2, in deep: ZeroDivisionError"):
            found.call({})

    def test_an_exit_in_the_file_does_not_end_the_run(self, tmp_path: Path):
        with pytest.raises(ModelError, match="SystemExit: 3"):
            reference(tmp_path, mine="import sys\nsys.exit(3)\n").load()

    def test_a_file_that_failed_is_read_again_after_it_was_mended(self, tmp_path: Path):
        with pytest.raises(ModelError):
            reference(tmp_path, mine="1 / 0\n").load()
        assert reference(tmp_path, mine="def make(): return 1\n").call({}) == 1


class TestArguments:
    def test_offered_arguments_reach_only_functions_that_take_them(self, tmp_path: Path):
        offered = {"num_classes": 10, "input_shapes": {}}
        assert reference(tmp_path, mine="def make(num_classes): return num_classes\n").call({}, offered) == 10
        assert reference(tmp_path, mine="def make(): return 'none'\n").call({}, offered) == "none"
        assert reference(tmp_path, mine="def make(**given): return sorted(given)\n").call({}, offered) == sorted(
            offered
        )

    def test_an_argument_goes_before_an_offer(self, tmp_path: Path):
        assert (
            reference(tmp_path, mine="def make(num_classes): return num_classes\n").call(
                {"num_classes": 3}, {"num_classes": 10}
            )
            == 3
        )

    def test_an_unknown_argument_is_told_with_the_nearest_one(self, tmp_path: Path):
        with pytest.raises(ModelError, match="no parameter 'widht'; did you mean 'width'"):
            reference(tmp_path, mine="def make(width=1): ...\n").call({"widht": 2})

    def test_a_missing_argument_names_the_function(self, tmp_path: Path):
        with pytest.raises(ModelError, match=r"mine\.py:make: TypeError: make\(\) missing 1 required .*'width'"):
            reference(tmp_path, mine="def make(width): ...\n").call({})


class TestSiblings:
    def test_files_beside_it_can_be_imported_even_within_the_call(self, tmp_path: Path):
        found = reference(tmp_path, mine="def make():\n    import later\n    return later.VALUE\n", later="VALUE = 5\n")
        assert found.call({}) == 5

    def test_the_import_path_is_left_as_it_was(self, tmp_path: Path):
        before = list(sys.path)
        reference(tmp_path, mine="def make(): ...\n").call({})
        assert sys.path == before

    def test_siblings_of_one_name_in_two_folders_are_told_apart(self, tmp_path: Path):
        values: list[object] = []
        for number in (1, 2):
            folder = tmp_path / str(number)
            folder.mkdir()
            found = reference(
                folder, mine="from beside import VALUE\ndef make(): return VALUE\n", beside=f"VALUE = {number}\n"
            )
            values.append(found.call({}))
        assert values == [1, 2]

    def test_a_changed_sibling_is_imported_anew(self, tmp_path: Path):
        source = "from beside import VALUE\ndef make(): return VALUE\n"
        assert reference(tmp_path, mine=source, beside="VALUE = 1\n").call({}) == 1
        assert reference(tmp_path, mine=source, beside="VALUE = 22\n").call({}) == 22

    def test_an_unchanged_file_is_imported_once(self, tmp_path: Path):
        text = "class Net: ...\ndef make(): return Net\n"
        assert reference(tmp_path, mine=text).call({}) is reference(tmp_path, mine=text).call({})


class TestHash:
    def test_it_changes_with_the_file_and_with_every_sibling_it_reaches(self, tmp_path: Path):
        sources = {"mine": "import near\ndef make(): ...\n", "near": "from far import VALUE\n", "far": "VALUE = 1\n"}
        hashes = {reference(tmp_path, **sources).sha256()}
        for name in sources:
            hashes.add(reference(tmp_path, **{**sources, name: sources[name] + "# changed\n"}).sha256())
        assert len(hashes) == 4

    def test_it_does_not_change_with_files_that_are_not_imported(self, tmp_path: Path):
        before = reference(tmp_path, mine="def make(): ...\n").sha256()
        assert reference(tmp_path, mine="def make(): ...\n", other="VALUE = 1\n").sha256() == before

    def test_it_does_not_depend_on_where_the_folder_is(self, tmp_path: Path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        first, second = (reference(tmp_path / name, mine="def make(): ...\n").sha256() for name in ("one", "two"))
        assert first == second
