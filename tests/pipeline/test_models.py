"""Facts about references to models, the built-in residual network, and loading weights into it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import nn

from potstill.pipeline.errors import ModelError
from potstill.pipeline.models import (
    LIBRARY_PATTERN,
    ModelReference,
    PythonModel,
    build,
    check_runs,
    derive,
    load_weights,
    resolve,
    source_of,
)
from potstill.pipeline.networks.network import Network
from potstill.pipeline.networks.resnet import ResNet

SHARED = Path(__file__).parents[3] / "shared"
CIFAR = {"image": (3, 32, 32)}
DEPTHS = (20, 32, 44, 56)

adapter: TypeAdapter[Network | PythonModel] = TypeAdapter(ModelReference)


def resnet(**settings: Any) -> ResNet:
    return ResNet(**settings)


def small(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(resnet(**{"depth": 8, "width": 8, **settings}), CIFAR, 10)


class TestReferences:
    def test_a_mapping_with_a_name_is_a_network_of_ours(self):
        assert adapter.validate_python({"name": "resnet", "depth": 56, "shortcut": "pad"}) == resnet(
            depth=56, shortcut="pad"
        )

    def test_a_text_and_a_mapping_name_the_users_function_alike(self):
        short = adapter.validate_python("models.py:make")
        assert short == adapter.validate_python({"python": "models.py:make"}) == PythonModel(python="models.py:make")

    def test_a_reference_survives_being_written_as_json(self):
        for reference in (resnet(depth=32), PythonModel(python="models.py:make", arguments={"width": 8, "fast": True})):
            assert adapter.validate_json(adapter.dump_json(reference)) == reference

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"name": "resnet", "depht": 20}, "depht"),
            ({"name": "resnext"}, "'resnet'"),
            ({"depth": 20}, "name"),
            ({"name": "resnet", "depth": 21}, "the nearest is 20"),
            ({"name": "resnet", "depth": 2}, "the nearest is 8"),
            ({"name": "resnet", "width": 0}, "greater than or equal to 1"),
            ("models.make", "pattern"),
            (7, "name"),
        ],
    )
    def test_a_reference_that_means_nothing_is_refused(self, given: Any, words: str):
        with pytest.raises(ValidationError, match=words):
            adapter.validate_python(given)

    def test_the_schema_for_editors_has_the_text_form_too(self):
        forms = adapter.json_schema()["anyOf"]
        assert {
            "type": "string",
            "pattern": PythonModel.model_json_schema()["properties"]["python"]["pattern"],
        } in forms
        for pattern in (LIBRARY_PATTERN, "^hf:.+"):
            assert {"type": "string", "pattern": pattern} in forms
        assert len(forms) == 5

    def test_resolving_makes_the_users_path_absolute(self, tmp_path: Path):
        (tmp_path / "models.py").write_text("def make(): ...\n")
        resolved = resolve(PythonModel(python="models.py:make"), tmp_path)
        assert resolved == PythonModel(python=f"{tmp_path}/models.py:make")
        assert resolve(resolved, Path("/")) == resolved
        assert resolve(resnet(), tmp_path) == resnet()
        with pytest.raises(ModelError, match="there is no file"):
            resolve(PythonModel(python="gone.py:make"), tmp_path)

    def test_a_changed_file_of_the_users_changes_the_hash(self, tmp_path: Path):
        file = tmp_path / "models.py"
        file.write_text("def make(): ...\n")
        reference = resolve(PythonModel(python="models.py:make"), tmp_path)
        before = source_of(reference)
        file.write_text("def make(): pass\n")
        assert source_of(reference) != before
        assert source_of(resnet()) == ""


def test_data_that_is_no_single_image_is_refused():
    with pytest.raises(ModelError, match=r"takes one image.*but the data gives tokens \(5,\), mask \(5,\)"):
        build(resnet(), {"tokens": (5,), "mask": (5,)}, 2)


class TestDerived:
    def test_factors_of_1_change_nothing(self):
        assert derive(resnet(width=12)) == resnet(width=12)

    def test_a_users_function_gets_scaled_counts_and_plain_factors(self, tmp_path: Path):
        (tmp_path / "models.py").write_text("def make(width=32, depth=1.0): ...\n")
        reference = resolve(PythonModel(python="models.py:make"), tmp_path)
        assert derive(reference, width=0.5, depth=0.5) == reference.model_copy(
            update={"arguments": {"width": 16, "depth": 0.5}}
        )
        wide = reference.model_copy(update={"arguments": {"width": 64}})
        assert derive(wide, width=0.25) == reference.model_copy(update={"arguments": {"width": 16}})

    def test_a_users_function_without_the_parameter_is_refused(self, tmp_path: Path):
        (tmp_path / "models.py").write_text("def make(): ...\n")
        reference = resolve(PythonModel(python="models.py:make"), tmp_path)
        with pytest.raises(ModelError, match=r"no parameter 'width'.*give the function a parameter `width`, or name"):
            derive(reference, width=0.5)


class TestUsersModels:
    def make(self, folder: Path, body: str, **arguments: Any) -> nn.Module:
        (folder / "models.py").write_text(f"from torch import nn\ndef make(num_classes, width=4):\n    {body}\n")
        return build(resolve(PythonModel(python="models.py:make", arguments=arguments), folder), {"x": (3,)}, 10)

    def test_it_is_given_the_number_of_classes_and_its_arguments(self, tmp_path: Path):
        model = self.make(tmp_path, "return nn.Linear(width, num_classes)", width=6)
        assert (model.in_features, model.out_features) == (6, 10)

    def test_a_result_that_is_no_module_is_refused(self, tmp_path: Path):
        with pytest.raises(ModelError, match=r"returned a value of type int; it must return a torch\.nn\.Module"):
            self.make(tmp_path, "return 3")

    def test_an_error_inside_names_the_users_line(self, tmp_path: Path):
        with pytest.raises(ModelError, match=r"models\.py:3, in make: .*Error"):
            self.make(tmp_path, "return nn.Lineal(width, num_classes)")


class TestRuns:
    def test_a_sound_model_passes_and_keeps_its_mode(self):
        model = small().train()
        check_runs(model, {"image": torch.zeros(2, 3, 32, 32)}, (10,))
        assert model.training

    @pytest.mark.parametrize(
        ("model", "words"),
        [
            (nn.Linear(5, 10), "does not run on the data's inputs .image 2x3x8x8.: RuntimeError"),
            (nn.Flatten(), "outputs of shape 2x192 .* they must be 2x10"),
            (nn.LSTM(8, 10), "does not run|returned a value of type tuple"),
            (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), "NaN or infinite"),
        ],
    )
    def test_a_model_that_does_not_fit_the_data_is_refused(self, model: nn.Module, words: str):
        images = torch.full((2, 3, 8, 8), torch.nan)
        with pytest.raises(ModelError, match=words):
            check_runs(model, {"image": images}, (10,))


class TestWeights:
    def stored(self, folder: Path, model: nn.Module, **changes: torch.Tensor | None) -> Path:
        tensors = {**model.state_dict(), **changes}
        save_file({key: value for key, value in tensors.items() if value is not None}, folder / "w.safetensors")
        return folder / "w.safetensors"

    def refused(self, model: nn.Module, path: Path, words: str) -> str:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(ModelError, match=words) as raised:
            load_weights(model, path)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        return str(raised.value)

    def test_a_saved_model_comes_back_bit_for_bit(self, tmp_path: Path):
        model = small()
        path = self.stored(tmp_path, model)
        other = build(resnet(depth=8, width=8), CIFAR, 10)
        load_weights(other, path)
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())

    def test_missing_unknown_and_misshapen_keys_are_named_with_their_shapes(self, tmp_path: Path):
        changes = {"linear.bias": None, "head.bias": torch.zeros(10), "conv1.weight": torch.zeros(8, 1, 3, 3)}
        message = self.refused(small(), self.stored(tmp_path, small(), **changes), "the weights do not fit the model")
        assert "1 missing in the file:\n    linear.bias 10" in message
        assert "1 unknown to the model:\n    head.bias 10" in message
        assert "1 of another shape:\n    conv1.weight 8x1x3x3, the model has 8x3x3x3" in message

    def test_no_more_than_eight_keys_of_a_kind_are_listed(self, tmp_path: Path):
        message = self.refused(small(), self.stored(tmp_path, small(width=16)), "of another shape")
        assert len(message.splitlines()) == 1 + 1 + 8 + 1 + 1
        assert "… and" in message

    def test_a_file_without_shortcut_weights_says_which_setting_fits(self, tmp_path: Path):
        self.refused(small(), self.stored(tmp_path, small(shortcut="pad")), "use `shortcut: pad`")

    def test_a_prefix_left_by_a_wrapper_is_recognised(self, tmp_path: Path):
        save_file({f"module.{key}": value for key, value in small().state_dict().items()}, tmp_path / "w.safetensors")
        self.refused(
            small(), tmp_path / "w.safetensors", "every key of the file begins with 'module.': save .* without it"
        )

    def test_weights_that_are_not_finite_are_refused(self, tmp_path: Path):
        path = self.stored(tmp_path, small(), **{"linear.bias": torch.full((10,), torch.nan)})
        self.refused(small(), path, r"linear\.bias hold values that are NaN or infinite")

    def test_a_missing_file_and_one_of_another_kind_are_told_apart(self, tmp_path: Path):
        self.refused(small(), tmp_path / "gone.safetensors", "no such file of weights")
        (tmp_path / "w.safetensors").write_bytes(b"no tensors here")
        self.refused(small(), tmp_path / "w.safetensors", "is not a readable .safetensors file")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the CIFAR-10 weights are not beside this checkout (../shared/weights)")
class TestPublishedWeights:
    @pytest.mark.parametrize("depth", DEPTHS)
    def test_they_load_strictly(self, depth: int):
        load_weights(
            build(resnet(depth=depth, shortcut="pad"), CIFAR, 10), SHARED / f"weights/cifar10/resnet{depth}.safetensors"
        )

    @pytest.mark.slow
    def test_resnet20_is_as_accurate_on_test_images_as_published(self, tmp_path: Path):
        """91.73 % over all 10,000; 500 of them are within 2.5 points of that (two standard errors)."""
        import runpy

        decode = runpy.run_path(str(SHARED / "tools/unpack_data.py"))["load"]
        x, y = decode(SHARED / "data/cifar10/test.npz")
        np.savez(tmp_path / "test.npz", x=x[:500], y=y[:500])
        np.savez(tmp_path / "train.npz", x=x[:20], y=y[:20])
        from potstill.pipeline.sources.npz import Npz

        test = Npz(path=tmp_path, normalize="imagenet").load(tmp_path).test
        model = build(resnet(shortcut="pad"), CIFAR, 10).eval()
        load_weights(model, SHARED / "weights/cifar10/resnet20.safetensors")
        with torch.no_grad():
            correct = sum(
                int((model(batch.inputs["image"]).argmax(1) == batch.target).sum()) for batch in test.batches(100)
            )
        assert correct / 500 == pytest.approx(0.9173, abs=0.025)


def test_the_reference_in_a_blueprint_is_plain_json():
    assert json.loads(adapter.dump_json(resnet())) == {
        "name": "resnet",
        "depth": 20,
        "width": 16,
        "stem": None,
        "stride": 1,
        "shortcut": "conv",
    }
