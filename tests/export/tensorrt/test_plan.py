"""Facts about what the builder is told: profiles from batches and ranges, and the mark of sparse weights."""

import json

import numpy as np
import onnx
import pytest

from potstill.export.proof import Unoptimised
from potstill.export.runtimes.tensorrt_runtime import TensorRTTarget
from potstill.export.tensorrt.plan import is_sparse, profile_of
from potstill.pipeline.errors import ExportError


def graph(inputs: str, *, body: str = "y = Identity(a)", opset: int = 21) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}]> profiled ({inputs}) => (float[N,M] y) {{ {body} }}'
    )


class TestProfiles:
    def test_go_from_one_to_the_largest_batch_and_are_best_for_the_first(self, float_graph: onnx.ModelProto) -> None:
        shape = profile_of(float_graph, (8, 1, 16), {})["image"]
        assert (shape.least, shape.usual, shape.most) == ((1, 1, 16, 16), (8, 1, 16, 16), (16, 1, 16, 16))
        run = Unoptimised(float_graph).run
        for given in (shape.least, shape.usual, shape.most):
            assert run({"image": np.zeros(given, np.float32)})["logits"].shape == (given[0], 4)

    def test_a_free_dimension_takes_the_range_of_its_name_or_of_its_input(self) -> None:
        model = graph("float[N,tokens] a, float[N,?,7] b")
        profile = profile_of(model, (4,), {"tokens": (1, 64, 128), "b": (2, 3, 4)})
        assert profile["a"].usual == (4, 64)
        assert (profile["b"].least, profile["b"].most) == ((1, 2, 7), (4, 4, 7))

    def test_a_first_dimension_that_is_no_batch_can_be_given_by_its_name(self) -> None:
        profile = profile_of(graph("float[steps,batch] a"), (4,), {"steps": (5, 6, 7), "batch": (1, 2, 3)})
        assert (profile["a"].least, profile["a"].usual, profile["a"].most) == ((5, 1), (6, 2), (7, 3))

    def test_inputs_of_fixed_shapes_stand_beside_free_ones(self) -> None:
        profile = profile_of(graph("float[N,3] a, float[2,3] b"), (1, 8), {})
        assert profile["b"].least == profile["b"].most == (2, 3)

    def test_without_free_dimensions_there_is_none(self) -> None:
        assert profile_of(graph("float[2,3] a"), (1, 8), {}) == {}

    @pytest.mark.parametrize(
        ("inputs", "ranges", "message"),
        [
            (
                "float[N,tokens] a",
                {},
                r"dimension 1 of the input a is free[\s\S]*`shapes: \{tokens: \[1, 64, 128\]\}`",
            ),
            ("float[N,?] a", {}, r"`shapes: \{a: \[1, 64, 128\]\}`"),
            ("float[N,tokens] a", {"token": (1, 2, 3), "tokens": (1, 2, 3)}, r"has token, .*it has tokens \(of a\)"),
            ("float[N,3] a", {"a": (1, 2, 3)}, "it has none but the batch"),
        ],
    )
    def test_what_is_free_and_what_is_given_must_agree(
        self, inputs: str, ranges: dict[str, tuple[int, int, int]], message: str
    ) -> None:
        with pytest.raises(ExportError, match=message):
            profile_of(graph(inputs), (1,), ranges)


class TestSettings:
    def test_reach_the_plan(self) -> None:
        target = TensorRTTarget(
            batch=(4,),
            tf32=True,
            workspace_mb=64,
            version_compatible=True,
            hardware_compatibility="ampere_plus",
            builder_optimization_level=5,
        )
        plan = target.plan(graph("float[N,3] a"))
        assert (plan.tf32, plan.workspace_bytes, plan.optimization_level) == (True, 64 * 2**20, 5)
        assert len(plan.in_words()) == 3

    def test_by_default_change_no_number_and_leave_every_kernel(self) -> None:
        plan = TensorRTTarget().plan(graph("float[N,3] a"))
        assert not plan.tf32
        assert (plan.workspace_bytes, plan.hardware_compatibility, plan.in_words()) == (None, "none", ())

    @pytest.mark.parametrize("sizes", [[3, 2, 1], [0, 1, 2]])
    def test_ranges_that_do_not_rise_are_refused(self, sizes: list[int]) -> None:
        with pytest.raises(ValueError, match="give the least, the usual and the largest size"):
            TensorRTTarget.model_validate({"runtime": "tensorrt", "shapes": {"tokens": sizes}})

    @pytest.mark.parametrize(
        "settings",
        [
            {"batch": (1, 64)},
            {"floats": "bf16"},
            {"tf32": True},
            {"version_compatible": True},
            {"shapes": {"t": (1, 2, 3)}},
        ],
    )
    def test_that_a_built_file_depends_on_are_part_of_what_it_is_known_by(self, settings: dict[str, object]) -> None:
        changed = TensorRTTarget.model_validate({"runtime": "tensorrt", **settings})
        assert changed.build_settings() != TensorRTTarget().build_settings()


def test_weights_are_sparse_where_the_export_marked_them() -> None:
    model = graph("float[N,3] a")
    assert not is_sparse(model)
    model.metadata_props.add(key="potstill.sparsity", value=json.dumps({"pattern": "2:4", "layers": ["conv"]}))
    assert is_sparse(model)
    assert TensorRTTarget().plan(model).sparse_weights
