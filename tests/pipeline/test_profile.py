"""Facts about `potstill profile`: which files it takes, which it refuses and why, and what it writes."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.helper import make_node

from potstill.export.engine import EngineDescription
from potstill.export.measurement import NotMeasured
from potstill.export.random_inputs import random_inputs, shapes_of
from potstill.pipeline.cli import main
from potstill.pipeline.comparison.profile_file import ProfileFile
from potstill.pipeline.errors import UsageError
from potstill.pipeline.profile import Profile
from potstill.pipeline.views.profile_tables import profile_tables
from tests.support.onnx_files import convolutions, model, one_operator, with_data_beside

Output = pytest.CaptureFixture[str]


def refused(capsys: Output, *arguments: object, code: int) -> str:
    """What standard error says of a call that must fail so, in the words of an error that is known."""
    assert main(["profile", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.count("potstill: ") == 1
    return " ".join(captured.err.split())


class TestUnsoundFiles:
    def test_what_is_no_onnx_is_said_to_be_none(self, capsys: Output, tmp_path: Path) -> None:
        file = tmp_path / "model.onnx"
        file.write_bytes(b"not a model at all" * 50)
        assert f"{file}: is no ONNX" in refused(capsys, file, code=1)

    def test_a_truncated_file_is_refused(self, capsys: Output, tmp_path: Path) -> None:
        file = convolutions(tmp_path / "model.onnx", 2)
        file.write_bytes(file.read_bytes()[:-400])
        assert "is no ONNX file, or a truncated one" in refused(capsys, file, code=1)

    def test_an_empty_file_is_refused(self, capsys: Output, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(b"")
        assert "holds no graph with outputs" in refused(capsys, tmp_path / "model.onnx", code=1)

    def test_unknown_operators_are_named(self, capsys: Output, tmp_path: Path) -> None:
        file = one_operator(tmp_path / "model.onnx", "Frobnicate")
        assert "names operators that ONNX does not have: Frobnicate (opset 17)" in refused(capsys, file, code=1)

    def test_operators_of_a_domain_that_the_runtime_does_not_have_are_its_own_to_refuse(
        self, capsys: Output, tmp_path: Path
    ) -> None:
        made = model(make_node("Frobnicate", ["x"], ["y"], "only", domain="somebody"))
        made.opset_import.append(onnx.helper.make_opsetid("somebody", 1))
        onnx.save(made, tmp_path / "model.onnx")
        assert "Frobnicate" in refused(capsys, tmp_path / "model.onnx", code=1)

    def test_missing_data_beside_the_file_is_named(self, capsys: Output, tmp_path: Path) -> None:
        file = with_data_beside(tmp_path / "model.onnx")
        data = tmp_path / "weights.bin"
        data.write_bytes(data.read_bytes()[:40])
        assert "weights.bin (has 40 of 64 bytes)" in refused(capsys, file, code=1)
        data.unlink()
        assert "weights.bin (not there; it belongs beside the model)" in refused(capsys, file, code=1)

    def test_outputs_of_no_size_are_refused(self, capsys: Output, tmp_path: Path) -> None:
        nothing = make_node("Slice", ["x", "zero", "zero", "one"], ["y"], "nothing")
        weights = [onnx.numpy_helper.from_array(np.array([each]), name) for name, each in (("zero", 0), ("one", 1))]
        onnx.save(model(nothing, outputs=("batch", 0), weights=weights), tmp_path / "model.onnx")
        assert "output y has the shape (1, 0): there is nothing in it" in refused(
            capsys, tmp_path / "model.onnx", code=1
        )

    def test_outputs_that_are_no_numbers_are_refused_with_the_way_out(self, capsys: Output, tmp_path: Path) -> None:
        file = one_operator(tmp_path / "model.onnx", "Sqrt")
        error = refused(capsys, file, code=1)
        assert "output y holds NaN or infinity for random inputs" in error
        assert "--inputs FILE.npz" in error
        np.savez(tmp_path / "bad.npz", x=np.full((1, 4), -1, np.float32))
        assert "for given inputs" in refused(capsys, file, "--inputs", tmp_path / "bad.npz", code=1)


class TestShapes:
    def test_free_dimensions_without_a_size_are_named_with_the_option(self, capsys: Output, tmp_path: Path) -> None:
        file = one_operator(tmp_path / "model.onnx", "Relu", shape=("batch", "words"), outputs=("batch", "words"))
        assert "x is (any, any): say its sizes with --shape x=1,?" in refused(capsys, file, code=2)
        assert "--shape x=4,?" in refused(capsys, file, "--batch", "4", code=2)

    def test_a_fixed_batch_cannot_be_changed(self, capsys: Output, tmp_path: Path) -> None:
        file = one_operator(tmp_path / "model.onnx", "Relu", shape=(2, 4), outputs=(2, 4))
        error = refused(capsys, file, "--batch", "1", code=2)
        assert "--batch 1: no input has a free first dimension: x (2, 4)" in error

    def test_a_shape_that_contradicts_the_file_is_refused(self, capsys: Output, tmp_path: Path) -> None:
        file = one_operator(tmp_path / "model.onnx", "Relu")
        assert "x is (any, 4), and --shape gives it (1, 5)" in refused(capsys, file, "--shape", "x=1,5", code=2)
        assert "no file has such an input; there are x" in refused(capsys, file, "--shape", "z=1,4", code=2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--shape", "1,4"), "--shape 1,4: must be a name and sizes"),
            (("--shape", "x=1,-4"), "--shape x: must be whole numbers"),
            (("--batch", "1,two"), "--batch: must be whole numbers above 0"),
            (("--batch", "0"), "--batch: must be whole numbers above 0"),
            (("--server", "0"), "--server 0: must be above 0"),
            (("--inputs", "x.npz", "--batch", "1"), "--inputs gives the sizes of all inputs"),
            (("--inputs", "no.npz"), "--inputs no.npz: is no .npz file"),
            (("--json", "nowhere/profile.json"), "--json nowhere/profile.json: there is no folder nowhere"),
            (("--runtime", "cray"), "--runtime cray: there is none of this name; there are"),
            (("--device", "abacus"), "onnxruntime: device:"),
        ],
    )
    def test_options_that_make_no_sense_are_refused(
        self, options: tuple[str, ...], message: str, capsys: Output, tmp_path: Path
    ) -> None:
        assert message in refused(capsys, one_operator(tmp_path / "model.onnx", "Relu"), *options, code=2)

    def test_given_inputs_that_do_not_fit_are_refused(self, capsys: Output, tmp_path: Path) -> None:
        file, bad = one_operator(tmp_path / "model.onnx", "Relu"), tmp_path / "bad.npz"
        np.savez(bad, z=np.ones((1, 4), np.float32))
        assert "takes the inputs x; given were z" in refused(capsys, file, "--inputs", bad, code=2)
        np.savez(bad, x=np.ones((1, 4)))
        error = refused(capsys, file, "--inputs", bad, code=2)
        assert "input x takes float32 (any, 4); given was float64 (1, 4)" in error

    def test_files_of_different_batches_cannot_stand_beside_each_other(self, capsys: Output, tmp_path: Path) -> None:
        two = one_operator(tmp_path / "two.onnx", "Relu", shape=(2, 4), outputs=(2, 4))
        one = one_operator(tmp_path / "one.onnx", "Relu")
        assert "they cannot be timed beside each other" in refused(capsys, one, two, code=2)

    def test_files_that_no_runtime_opens_are_refused(self, capsys: Output, tmp_path: Path) -> None:
        assert "no such file" in refused(capsys, tmp_path / "model.onnx", code=2)
        assert "is a folder; name the engine's file in it" in refused(capsys, tmp_path, code=2)
        (tmp_path / "model.xyz").write_bytes(b"x")
        assert "no runtime opens files of this ending; there are ." in refused(capsys, tmp_path / "model.xyz", code=2)
        assert "onnxruntime opens .onnx, not .xyz" in refused(
            capsys, tmp_path / "model.xyz", "--runtime", "onnxruntime", code=2
        )

    def test_no_file_is_no_request(self, capsys: Output) -> None:
        assert "name the files to profile" in refused(capsys, code=2)


def description(**inputs: tuple[tuple[int | None, ...], str]) -> EngineDescription:
    shapes, types = ({name: each[index] for name, each in inputs.items()} for index in (0, 1))
    return EngineDescription.model_validate(
        {"provider": "none", "inputs": shapes, "input_types": types, "outputs": {}, "operators": {}}
    )


class TestRandomInputs:
    def test_the_batch_replaces_free_first_sizes_alone(self) -> None:
        bert = description(ids=((None, None), "int64"), scale=((1,), "float32"), one=((), "float32"))
        assert shapes_of("f", bert, batch=None, given={"ids": (2, 7)}) == {"ids": (2, 7), "scale": (1,), "one": ()}
        assert shapes_of("f", bert, batch=5, given={"ids": (2, 7)}) == {"ids": (5, 7), "scale": (1,), "one": ()}

    def test_every_problem_is_named_at_once(self) -> None:
        with pytest.raises(UsageError, match=r"f: a is .*; b is "):
            shapes_of("f", description(a=((None, None), "int64"), b=((1, None), "int64")), batch=1, given={})

    def test_the_same_name_and_shape_always_get_the_same_values(self) -> None:
        both = description(a=((2, 3), "float32"), b=((2, 3), "float32"))
        first = random_inputs(both, {"a": (2, 3), "b": (2, 3)})
        assert (first["a"] == random_inputs(both, {"a": (2, 3)})["a"]).all()
        assert (first["a"] != first["b"]).any()

    @pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "bool"])
    def test_whole_numbers_are_valid_tokens_and_masks(self, kind: str) -> None:
        drawn = random_inputs(description(a=((100,), kind)), {"a": (100,)})["a"]
        assert drawn.dtype == np.dtype(kind)
        assert set(drawn.astype(int).tolist()) == {0, 1}

    def test_types_that_cannot_be_drawn_are_left_to_the_person(self) -> None:
        with pytest.raises(UsageError, match=r"type tensor\(string\): give it with --inputs"):
            random_inputs(description(a=((1,), "tensor(string)")), {"a": (1,)})


class TestProfile:
    def test_several_files_come_out_beside_the_first_with_their_layers(self, capsys: Output, tmp_path: Path) -> None:
        folders = [tmp_path / name for name in ("a", "b")]
        for folder in folders:
            folder.mkdir()
        files = [convolutions(folder / "net.onnx", count) for folder, count in zip(folders, (2, 3), strict=True)]
        written = tmp_path / "profile.json"
        assert main(["profile", *map(str, files), "--batch", "1,2", "--layers", "--json", str(written)]) == 0
        out = capsys.readouterr().out
        assert "conv2" in out
        assert "Speed" in out
        found = Profile.load(written)
        # Where the names of files are the same, their paths tell them apart.
        assert [entry.name for entry in found.entries] == [str(file) for file in files]
        for entry, count in zip(found.entries, (2, 3), strict=True):
            assert [each.batch for each in entry.latency] == [1, 2]
            assert entry.provider == "CPUExecutionProvider"
            assert entry.inputs == {"x": (None, 4, 8, 8)}
            assert entry.layers is not None
            assert {f"conv{number}" for number in range(count)} <= {each.layer for each in entry.layers}
        first, second = found.entries
        assert [each.baseline for each in second.beside_first] == list(first.latency)
        assert [each.ratio for each in first.beside_first] == [1, 1]

    def test_an_engine_without_times_of_layers_has_its_reason_in_place_of_a_column(self, tmp_path: Path) -> None:
        file, written = convolutions(tmp_path / "net.onnx", 2), tmp_path / "profile.json"
        assert main(["profile", str(file), "--layers", "--json", str(written)]) == 0
        found = Profile.load(written)
        silent = found.entries[0].model_copy(
            update={"name": "silent", "layers": NotMeasured(reason="it tells nothing")}
        )
        both = found.model_copy(update={"entries": (silent, *found.entries)})
        written.write_text(both.model_dump_json())
        layers = list(profile_tables(Profile.load(written)))[-1]
        assert [column.title for column in layers.columns] == ["Layer", "net.onnx"]
        assert layers.note.endswith("silent: not measured (it tells nothing).")
        compared = ProfileFile.load(written)
        assert compared is not None
        assert compared.entries[0].layers == silent.layers
        alone = found.model_copy(update={"entries": (silent,)})
        assert [table.title for table in profile_tables(alone)] == ["Latency"]

    def test_given_inputs_are_used_and_json_alone_can_be_printed(self, capsys: Output, tmp_path: Path) -> None:
        file = one_operator(tmp_path / "model.onnx", "Sqrt")
        np.savez(tmp_path / "good.npz", x=np.ones((3, 4), np.float32))
        assert main(["profile", str(file), "--inputs", str(tmp_path / "good.npz"), "--offline", "--json", "-"]) == 0
        found = Profile.model_validate(json.loads(capsys.readouterr().out))
        assert found.inputs.endswith("good.npz")
        (entry,) = found.entries
        assert [each.batch for each in entry.latency] == [3]
        assert entry.offline is not None
        assert entry.offline.sweep[0].batch == 1

    def test_a_self_check_says_what_it_found_and_whether_that_is_enough(self, capsys: Output, tmp_path: Path) -> None:
        written = tmp_path / "check.json"
        code = main(["profile", "--self-check", "--comparisons", "1", "--json", str(written)])
        found = json.loads(written.read_text())
        assert (found["kind"], found["false_alarms"]["count"], found["found"]["count"]) == ("self-check", 1, 1)
        out = capsys.readouterr().out
        assert "an engine with itself" in out
        assert code == (0 if found["false_alarms"]["hits"] == 0 and found["found"]["hits"] == 1 else 3)

    def test_a_profile_that_is_none_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("{}")
        with pytest.raises(UsageError, match="is no profile"):
            Profile.load(tmp_path / "a.json")
