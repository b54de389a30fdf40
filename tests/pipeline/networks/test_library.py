"""Facts about networks of other packages."""

import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from potstill.pipeline.errors import MissingDependency, ModelError
from potstill.pipeline.models import ModelReference, build, check_runs, derive, load_weights, source_of
from potstill.pipeline.networks.library import LibraryNetwork


class Choice(BaseModel):
    model: ModelReference


def network(given: object) -> LibraryNetwork:
    found = Choice.model_validate({"model": given}).model
    assert isinstance(found, LibraryNetwork)
    return found


def importable(name: str) -> str:
    """Why the package cannot be imported here; empty where it can."""
    try:
        import_module(name)
    except Exception as error:  # torchvision raises RuntimeError beside a torch that it was not built for
        return f"{name} does not import: {type(error).__name__}: {error}".partition("\n")[0]
    return ""


def test_the_short_form_is_the_name_in_the_package() -> None:
    assert network("timm:resnet10t.c3_in1k") == network({"name": "timm", "model": "resnet10t.c3_in1k"})
    assert network("torchvision:resnet18").label == "torchvision:resnet18"


@pytest.mark.parametrize("given", ["timm:hf-hub:somebody/net", "timm:../net", "torchvision:"])
def test_names_that_would_be_looked_for_elsewhere_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="should match pattern"):
        network(given)


def test_a_package_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere:
        def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> None:
            if name == "timm":
                raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Nowhere(), *sys.meta_path])
    with pytest.raises(MissingDependency, match=r"timm is missing\): pip install 'potstill\[vision\]'"):
        build(network("timm:resnet18"), {"image": (3, 32, 32)}, 5)


def test_a_package_that_does_not_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    folder = tmp_path / "torchvision-9.8.7.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 9.8.7\n")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    words = (
        r"torchvision 9.8.7 is installed but does not import beside torch .*\(RuntimeError: operator "
        r"torchvision::nms does not exist\)\. .* install torch and torchvision again, together"
    )
    with pytest.raises(MissingDependency, match=words):
        build(network("torchvision:resnet18"), {"image": (3, 32, 32)}, 5)


def test_no_student_of_another_size_is_derived() -> None:
    with pytest.raises(ModelError, match=r"timm:resnet18 is of one size.*name the student's own network"):
        derive(network("timm:resnet18"), width=0.5)


REASON = {name: importable(name) for name in ("timm", "torchvision")}
CASES: dict[str, dict[str, Any]] = {
    "timm": {"model": "timm:resnet10t", "unknown": "timm:resnet10", "near": "resnet10t", "given": "in_chans"},
    "torchvision": {
        "model": "torchvision:resnet18",
        "unknown": "torchvision:resnet19",
        "near": "resnet18",
        "given": "num_classes",
    },
}


@pytest.mark.parametrize("package", list(CASES))
class TestAPackageThatIsThere:
    @pytest.fixture(autouse=True)
    def needs_it(self, package: str) -> None:
        if REASON[package]:
            pytest.skip(REASON[package])

    def test_builds_a_classifier_for_the_data_and_takes_local_weights(self, package: str, tmp_path: Path) -> None:
        reference = network(CASES[package]["model"])
        first, second = (build(reference, {"image": (3, 32, 32)}, 5).eval() for _ in range(2))
        images = torch.randn(2, 3, 32, 32)
        assert not torch.equal(first(images), second(images))
        save_file(first.state_dict(), tmp_path / "weights.safetensors")
        load_weights(second, tmp_path / "weights.safetensors")
        assert torch.equal(check_runs(second, {"image": images}, (5,)), first(images))

    def test_is_part_of_the_fingerprint_by_its_version(self, package: str) -> None:
        assert source_of(network(CASES[package]["model"])) == f"{package} {version(package)}"

    def test_has_no_model_of_another_name(self, package: str) -> None:
        near = CASES[package]["near"]
        with pytest.raises(ModelError, match=f"{package} has no such model; did you mean .*{near}"):
            build(network(CASES[package]["unknown"]), {"image": (3, 32, 32)}, 5)

    def test_takes_only_arguments_that_are_the_recipes(self, package: str) -> None:
        for argument, words in (
            (CASES[package]["given"], "may not give .*: the data settles shapes"),
            ("wide", "cannot be built .*TypeError: .*wide"),
        ):
            short = CASES[package]["model"].partition(":")[2]
            reference = network({"name": package, "model": short, "arguments": {argument: 4}})
            with pytest.raises(ModelError, match=words):
                build(reference, {"image": (3, 32, 32)}, 5)
