"""Facts about bringing one shape to another."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import draws
from torch import nn

from potstill.stages.knowledge.projection import (
    as_maps,
    as_tokens,
    common_size,
    is_grid,
    like,
    projector,
    resized,
    tokens_resized,
)

SHAPES = {
    "maps": (3, 4, 8, 8),
    "small maps": (3, 6, 3, 3),
    "flat maps": (3, 5, 2, 9),
    "patches": (3, 16, 7),
    "patches and a class token": (3, 26, 5),
    "a row of tokens": (3, 11, 6),
    "vectors": (3, 9),
}
"""Everything that a tap may give; sizes 16 and 25 + 1 are square grids of patches."""


class TestProjector:
    @pytest.mark.parametrize(("student", "teacher"), list(product(SHAPES, SHAPES)))
    def test_bridges_any_two_shapes(self, student: str, teacher: str) -> None:
        module = projector(SHAPES[student], SHAPES[teacher])
        projected = module(draws(*SHAPES[student], dtype=torch.float32))
        assert projected.shape == SHAPES[teacher]
        projected.square().sum().backward()
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()

    def test_works_on_other_batch_sizes_than_it_was_made_with(self) -> None:
        assert projector((2, 4, 8, 8), (2, 6, 4, 4))(torch.randn(5, 4, 8, 8)).shape == (5, 6, 4, 4)
        assert projector((2, 7), (2, 6, 4, 4))(torch.randn(5, 7)).shape == (5, 6, 4, 4)

    def test_projects_each_place_on_its_own(self) -> None:
        """A student's patch goes to where the teacher has it, whether as maps or as tokens."""
        module = projector((1, 3, 4, 4), (1, 16, 5))
        maps = torch.zeros(1, 3, 4, 4)
        maps[0, :, 1, 2] = torch.tensor([1.0, -2.0, 3.0])
        changed = (module(maps) - module(torch.zeros(1, 3, 4, 4))).abs().sum(2)[0]
        assert changed.nonzero().flatten().tolist() == [4 * 1 + 2]

    def test_starts_from_the_global_generator(self) -> None:
        states: list[torch.Tensor] = []
        for _ in range(2):
            torch.manual_seed(3)
            states.append(next(projector((2, 4, 8, 8), (2, 6, 8, 8)).parameters()))
        torch.testing.assert_close(*states)


class TestLike:
    @pytest.mark.parametrize(("mine", "theirs"), list(product(SHAPES, SHAPES)))
    def test_keeps_channels_and_takes_the_rest(self, mine: str, theirs: str) -> None:
        channels = 1 if len(SHAPES[mine]) != 3 else 2
        found = like(draws(*SHAPES[mine]), SHAPES[theirs])
        wanted = list(SHAPES[theirs])
        wanted[1 if len(wanted) != 3 else 2] = SHAPES[mine][channels]
        assert list(found.shape) == wanted

    @pytest.mark.parametrize(("mine", "theirs"), list(product(SHAPES, SHAPES)))
    def test_keeps_constants(self, mine: str, theirs: str) -> None:
        found = like(torch.full(SHAPES[mine], 2.5, dtype=torch.float64), SHAPES[theirs])
        torch.testing.assert_close(found, torch.full_like(found, 2.5))

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    def test_changes_nothing_where_shapes_agree(self, shape: tuple[int, ...]) -> None:
        tensor = draws(*shape)
        assert like(tensor, shape) is tensor


class TestResized:
    def test_averages_where_maps_are_larger(self) -> None:
        maps = draws(2, 3, 8, 6)
        expected = torch.empty(2, 3, 4, 2, dtype=torch.float64)
        for row in range(4):
            for column in range(2):
                expected[:, :, row, column] = maps[:, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3].mean(
                    (2, 3)
                )
        torch.testing.assert_close(resized(maps, (4, 2)), expected)

    def test_interpolates_where_maps_are_smaller(self) -> None:
        ramp = torch.arange(4, dtype=torch.float64).expand(1, 1, 4, 4)
        wide = resized(ramp, (8, 8))
        torch.testing.assert_close(wide[0, 0, 3, 1:-1], torch.linspace(0.25, 2.75, 6, dtype=torch.float64))

    def test_does_each_along_its_axis(self) -> None:
        maps = draws(1, 2, 8, 2)
        torch.testing.assert_close(resized(maps, (2, 8)).mean((2, 3)), resized(maps, (2, 2)).mean((2, 3)))
        assert resized(maps, (2, 8)).shape == (1, 2, 2, 8)

    @given(seed=st.integers(0, 100), height=st.integers(1, 9), width=st.integers(1, 9))
    @settings(max_examples=20, deadline=None)
    def test_stays_between_the_least_and_the_greatest(self, seed: int, height: int, width: int) -> None:
        maps = draws(1, 1, 5, 5, seed=seed)
        found = resized(maps, (height, width))
        assert found.min() >= maps.min() - 1e-9
        assert found.max() <= maps.max() + 1e-9


class TestTokens:
    def test_keep_their_places_as_maps(self) -> None:
        maps = draws(2, 5, 3, 3)
        torch.testing.assert_close(as_maps(as_tokens(maps)), maps)

    def test_leave_the_class_token_out_of_maps(self) -> None:
        tokens = draws(2, 10, 5)
        torch.testing.assert_close(as_maps(tokens), as_maps(tokens[:, 1:]))

    def test_of_another_number_keep_the_class_token(self) -> None:
        tokens = draws(2, 17, 5)
        found = tokens_resized(tokens, 5)
        torch.testing.assert_close(found[:, 0], tokens[:, 0])
        torch.testing.assert_close(as_maps(found), resized(as_maps(tokens), (2, 2)))

    def test_without_a_class_token_have_their_mean_for_one(self) -> None:
        tokens = draws(2, 16, 5)
        torch.testing.assert_close(tokens_resized(tokens, 17)[:, 0], tokens.mean(1))
        torch.testing.assert_close(tokens_resized(tokens, 17)[:, 1:], tokens)

    def test_are_a_grid_where_their_number_is_a_square_or_one_more(self) -> None:
        squares = [count for count in range(2, 40) if is_grid((1, count, 3))]
        assert squares == [4, 5, 9, 10, 16, 17, 25, 26, 36, 37]


class TestCommonSize:
    def test_is_the_smaller_height_and_the_smaller_width(self) -> None:
        student, teacher = common_size(draws(2, 3, 8, 4), draws(2, 5, 4, 6))
        assert (student.shape, teacher.shape) == ((2, 3, 4, 4), (2, 5, 4, 4))


def test_projectors_between_maps_have_a_batch_norm_and_no_bias() -> None:
    kinds = [type(module) for module in projector((2, 4, 8, 8), (2, 6, 8, 8)).children()]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d]
