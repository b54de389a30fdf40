"""Facts about the order in which channels go under a budget of latency, and about the times it follows."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.quantization import Quantization
from potstill.pipeline.side_by_side import Part
from potstill.stages.pruning.blocks import Block
from potstill.stages.pruning.by_time import Sides, Timed, by_time, channels_of, losses
from potstill.stages.pruning.groups import ChannelGroup, Member
from potstill.stages.pruning.layer_times import LayerTimes, Point, Table, seen_inputs, table_of
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def group(layer: str, reader: str, channels: int) -> ChannelGroup:
    every = tuple(range(channels))
    writes = Member(layer, reads=False, writes=True, channels=every, roots=every)
    reads = Member(reader, reads=True, writes=False, channels=every, roots=every)
    return ChannelGroup((writes, reads), channels, parts=1)


def pieces(of: ChannelGroup, size: int, prices: Sequence[float]) -> list[Block]:
    return [Block(of, tuple(range(size * number, size * (number + 1))), price) for number, price in enumerate(prices)]


def row(layer: str, reads: int, writes: int, by_writes: dict[int, float]) -> LayerTimes:
    points = tuple(Point(reads=reads, writes=count, ms=ms) for count, ms in by_writes.items())
    return LayerTimes(layers=(layer,), calls=1, reads=reads, writes=writes, depthwise=False, points=points)


WHOLE = Sides({("a", "writes"): 32, ("a", "reads"): 4, ("b", "writes"): 32, ("b", "reads"): 4})
EVERY = tuple(range(32))
A, B = group("a", "head", 32), group("b", "head", 32)


def order(timed: Timed) -> str:
    return "".join("a" if block.group is A else "b" for block in timed.blocks)


class TestOrder:
    def test_of_equal_losses_goes_first_what_saves_more_time(self) -> None:
        ordered = [*pieces(A, 8, [0.1, 0.1, 0.1]), *pieces(B, 8, [0.1, 0.1, 0.1])]
        table = Table([row("a", 4, 32, {32: 1.0, 8: 0.9}), row("b", 4, 32, {32: 1.0, 8: 0.1})])
        assert order(by_time(ordered, losses(ordered, "global"), WHOLE, table)) == "bbbaaa"

    def test_blocks_that_only_save_together_go_together(self) -> None:
        ordered = [*pieces(A, 8, [0.1, 0.1]), *pieces(B, 8, [0.15, 0.3])]
        plateau = row("a", 4, 32, {32: 1.0, 24: 1.0, 16: 0.6})
        table = Table([plateau, row("b", 4, 32, {32: 1.0, 24: 0.8, 16: 0.6})])
        timed = by_time(ordered, losses(ordered, "global"), WHOLE, table)
        assert order(timed) == "aabb"
        assert timed.blocks[0].price == timed.blocks[1].price
        assert timed.saved_ms([0]) == 0
        assert timed.saved_ms([0, 1]) == pytest.approx(0.4)

    def test_what_saves_no_time_goes_last_however_little_it_costs(self) -> None:
        ordered = [*pieces(A, 8, [0.001, 0.002]), *pieces(B, 8, [10.0, 20.0])]
        table = Table([row("a", 4, 32, {32: 1.0, 16: 1.0}), row("b", 4, 32, {32: 1.0, 16: 0.99})])
        assert order(by_time(ordered, losses(ordered, "global"), WHOLE, table)) == "bbaa"

    def test_prices_never_fall_and_no_block_is_lost(self) -> None:
        ordered = [*pieces(A, 4, [0.4, 0.1, 0.9, 0.2]), *pieces(B, 4, [0.3, 0.3, 0.1, 0.5])]
        table = Table([row("a", 4, 32, {32: 1.0, 24: 0.5, 16: 0.4}), row("b", 4, 32, {32: 1.0, 24: 0.9, 16: 0.2})])
        found = by_time(ordered, losses(ordered, "global"), WHOLE, table).blocks
        prices = [block.price for block in found]
        assert prices == sorted(prices)
        assert {(id(block.group), block.units) for block in found} == {
            (id(block.group), block.units) for block in ordered
        }

    def test_a_price_of_sensitivity_is_what_the_loss_has_risen_to(self) -> None:
        blocks = [*pieces(A, 8, [0.1, 0.4]), *pieces(B, 8, [0.2])]
        assert losses(blocks, "sensitivity") == pytest.approx([0.1, 0.3, 0.2])

    def test_any_other_price_is_one_layers_loss_for_each_further_share(self) -> None:
        blocks = [*pieces(A, 8, [0.1, 0.4]), *pieces(B, 8, [0.2])]
        layers = len(A.members)
        assert losses(blocks, "global") == pytest.approx([0.025 * layers, 0.1 * layers, 0.05 * layers])

    def test_a_stream_through_many_layers_is_not_preferred_for_their_number(self) -> None:
        more = (Member(f"c{number}", reads=True, writes=False, channels=EVERY, roots=EVERY) for number in range(4))
        stream = ChannelGroup((*A.members, *more), 32, parts=1)
        ordered = [*pieces(stream, 16, [0.1]), *pieces(B, 16, [0.1])]
        readers = [row(f"c{number}", 32, 4, {4: 1.0}) for number in range(4)]
        alike = [row(layer, 4, 32, {32: 1.0, 16: 0.5}) for layer in ("a", "b")]
        timed = by_time(ordered, losses(ordered, "global"), WHOLE, Table([*alike, *readers]))
        assert [block.group is stream for block in timed.blocks] == [False, True]

    def test_a_block_takes_channels_from_writers_and_readers(self) -> None:
        flat = Member("head", reads=True, writes=False, channels=tuple(range(128)), roots=tuple(range(32)) * 4)
        writer = A.members[0]
        (block,) = pieces(ChannelGroup((writer, flat), 32, parts=1), 8, [0.1])
        assert channels_of(block) == {("a", "writes"): 8, ("head", "reads"): 32}


class TestLayerTimes:
    def test_lie_on_lines_between_what_was_measured(self) -> None:
        times = row("a", 4, 32, {32: 1.0, 16: 0.6, 8: 0.5})
        assert [times.ms(4, count) for count in (32, 24, 16, 12, 8)] == pytest.approx([1.0, 0.8, 0.6, 0.55, 0.5])

    def test_of_both_sides_together_are_those_of_the_multiply_accumulates(self) -> None:
        def true_ms(reads: int, writes: int) -> float:
            return 0.1 + 0.01 * reads + 0.02 * writes + 0.003 * reads * writes

        sizes = [(16, 32), (16, 24), (16, 8), (12, 32), (4, 32), (4, 8)]
        points = tuple(Point(reads=r, writes=w, ms=true_ms(r, w)) for r, w in sizes)
        times = LayerTimes(layers=("a",), calls=2, reads=16, writes=32, depthwise=False, points=points)
        for reads, writes in ((16, 32), (10, 20), (4, 8), (8, 32)):
            assert times.ms(reads, writes) == pytest.approx(2 * true_ms(reads, writes))

    def test_a_layer_that_is_not_in_the_table_takes_no_time(self) -> None:
        assert Table([]).ms("norm", 0, 16) == 0


class Weighing:
    """A bench of an imaginary machine that takes a millisecond for each weight; it remembers what it was asked."""

    label = "imaginary"

    def __init__(self) -> None:
        self.asked: list[tuple[list[Part], bool]] = []

    def part_ms(self, parts: Sequence[Part], placed: object) -> list[float]:
        self.asked.append((list(parts), placed is not None))
        return [float(part.num_weights) for part in parts]


class TestTable:
    def test_holds_equal_layers_once_at_multiples_of_round_to(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        bench = Weighing()
        context = dataclasses.replace(new_context(), bench=bench)
        model = new_artifact(depth=14, width=32).model
        least = dict.fromkeys(("layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1"), (8, 8))
        (times,) = table_of(model, least, 8, None, context, "table").rows
        assert times.layers == tuple(least)
        assert [(point.reads, point.writes) for point in times.points] == [
            *((32, count) for count in (32, 24, 16, 8)),
            *((count, 32) for count in (24, 16, 8)),
            (8, 8),
        ]
        assert times.points[1].ms == 32 * 24 * 9
        again = table_of(model, least, 8, None, context, "table")
        assert again.rows == (times,)
        assert len(bench.asked) == 1

    def test_of_a_depthwise_layer_shrinks_both_sides_at_once(self, new_context: NewContext) -> None:
        model = nn.Sequential(nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 3, groups=16))
        context = dataclasses.replace(new_context(), bench=Weighing())
        (times,) = table_of(model, {"1": (8, 8)}, 4, None, context, "table").rows
        assert [(point.reads, point.writes, point.ms) for point in times.points] == [
            (count, count, count * 10) for count in (16, 12, 8)
        ]
        assert times.ms(10, 10) == 100

    def test_of_many_channels_has_eight_counts_a_side(self, new_context: NewContext) -> None:
        model = nn.Sequential(nn.Conv2d(1, 512, 1))
        context = dataclasses.replace(new_context(), bench=Weighing())
        (times,) = table_of(model, {"0": (1, 8)}, 8, None, context, "table").rows
        counts = [point.writes for point in times.points]
        assert len(counts) == 8
        assert counts[0] == 512
        assert counts[-1] == 8
        assert all(count % 8 == 0 for count in counts)

    def test_of_a_quantized_model_is_in_int8_but_for_the_layers_in_float(self, new_context: NewContext) -> None:
        bench = Weighing()
        model = nn.Sequential(nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 3))
        quantization = Quantization(weight_bits=7, weights=(), activations={}, float_layers=("1",))
        context = dataclasses.replace(new_context(), bench=bench)
        table_of(model, {"0": (1, 8), "1": (8, 16)}, 8, quantization, context, "table")
        assert [(parts[0].shape[1], in_int8) for parts, in_int8 in bench.asked] == [(1, True), (16, False)]

    def test_counts_how_often_a_layer_runs(self, new_context: NewContext) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Conv2d(1, 1, 3, padding=1)
                self.idle = nn.Linear(2, 2)

            def forward(self, image: torch.Tensor) -> torch.Tensor:
                return self.layer(self.layer(image))

        assert seen_inputs(Twice(), ["layer", "idle"], new_context()) == {"layer": ((1, 1, 16, 16), 2)}
