"""Facts about engines that are timed in turns, each in processes of its own; nothing about how fast they are."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from potstill.export import latency
from potstill.export.deliver import BuiltEngine, measure_scenarios, rank_engines
from potstill.export.engine_process import EngineProcess
from potstill.export.latency import Contestant, compare, in_turns, rank
from potstill.export.machine import machine_facts
from potstill.export.parity import numpy_inputs
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.export.scenarios import OfflineScenario, ServerScenario
from potstill.export.self_check import Rate, SelfCheck, self_check, small_engine
from potstill.export.target import EngineFile
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError
from tests.support.brief_timing import USUAL


@pytest.fixture
def file(float_engine: BuiltEngine, target: OnnxRuntimeTarget) -> EngineFile:
    return EngineFile(target, float_engine.path)


class TestInTurns:
    def test_every_engine_has_a_block_for_every_turn_at_every_batch_size(self, file: EngineFile, data: Dataset) -> None:
        inputs = {batch: numpy_inputs(data.example(batch)) for batch in (1, 3)}
        found = in_turns([Contestant(file, inputs)] * 3)
        assert set(found.blocks) == {1, 3}
        for blocks in found.blocks.values():
            assert [len(each) for each in blocks] == [3, 3, 3]
            assert len({len(block) for each in blocks for block in each}) <= 3  # each engine has its count
        assert found.device_latency(0) == ()
        assert found.device_memory_bytes == (None, None, None)

    def test_rounds_go_on_while_the_ratio_is_not_known_well_enough(
        self, file: EngineFile, data: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(latency, "MAX_ROUNDS", 2)
        monkeypatch.setattr(latency, "MORE_UNTIL_SECONDS", 60.0)
        inputs = {1: numpy_inputs(data.example(1))}
        turns: list[int | None] = []
        for narrow in (np.inf, 0.0):
            monkeypatch.setattr(latency, "NARROW", narrow)
            turns.append(compare(file, file, inputs).comparisons[0].turns)
        assert turns == [3, 6]

    def test_a_process_that_fails_is_reported(self, file: EngineFile, data: Dataset, garbage: Path) -> None:
        broken = EngineFile(file.target, garbage)
        with pytest.raises(ExportError, match="is damaged"):
            compare(broken, file, {1: numpy_inputs(data.example(1))})


class TestUsualLengths:
    def test_a_comparison_has_two_rounds_of_twelve_turns_and_enough_samples_for_a_p99(
        self, file: EngineFile, data: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in USUAL[latency].items():
            monkeypatch.setattr(latency, name, value)
        monkeypatch.setattr(latency, "NARROW", np.inf)
        (found,) = compare(file, file, {1: numpy_inputs(data.example(1))}).comparisons
        assert found.turns == 24
        assert found.candidate.samples >= 1000
        assert found.candidate.p99_ms is not None


class TestRank:
    def test_all_engines_stand_beside_the_fastest_at_the_batch_of_the_inputs(
        self, file: EngineFile, data: Dataset
    ) -> None:
        found = rank({"one": file, "two": file, "three": file}, numpy_inputs(data.example(2)))
        assert {each.target for each in found} == {"one", "two", "three"}
        medians = [each.comparison.candidate.p50_ms for each in found]
        assert medians[0] == min(medians)
        ratios = [each.comparison.ratio for each in found[1:]]
        assert ratios == sorted(ratios, reverse=True)
        assert {each.comparison.baseline.p50_ms for each in found} == {medians[0]}
        assert {each.comparison.batch for each in found} == {2}

    def test_final_engines_are_ranked_at_the_first_batch_size_that_their_targets_share(
        self, float_engine: BuiltEngine, int8_engine: BuiltEngine, data: Dataset
    ) -> None:
        one, other, alone = (OnnxRuntimeTarget(batch=batch) for batch in ((1, 4, 2), (2, 4), (8,)))
        found = rank_engines([(float_engine, one), (int8_engine, other)], data)
        assert {each.target for each in found} == {"onnxruntime cpu fp32", "onnxruntime cpu int8"}
        assert {each.comparison.batch for each in found} == {4}
        assert rank_engines([(float_engine, one), (int8_engine, alone)], data) == ()
        assert rank_engines([(float_engine, one)], data) == ()


class TestScenarios:
    def test_they_are_measured_as_the_target_asks(self, float_engine: BuiltEngine, data: Dataset) -> None:
        target = OnnxRuntimeTarget(
            offline=OfflineScenario(max_batch=4),
            server=ServerScenario(p99_ms=10_000, seconds=0.1, replay_seconds=0.1, max_batch=2),
        )
        found = measure_scenarios(float_engine, target, data)
        assert found.offline is not None
        assert [point.batch for point in found.offline.sweep] == [1, 2, 4][: len(found.offline.sweep)]
        assert found.server is not None
        assert found.server.best is not None  # nobody waits ten seconds
        assert found.server.best.queries >= 1000
        assert found.server.best == found.server.replays[-1]
        assert type(found).model_validate_json(found.model_dump_json()) == found

    def test_nothing_is_measured_that_was_not_asked_for(
        self, float_engine: BuiltEngine, target: OnnxRuntimeTarget, data: Dataset
    ) -> None:
        found = measure_scenarios(float_engine, target, data)
        assert (found.offline, found.server) == (None, None)
        assert target.scenario_settings() == {}

    def test_their_settings_are_no_settings_of_latency(self) -> None:
        plain, asked = OnnxRuntimeTarget(), OnnxRuntimeTarget(server=ServerScenario(p99_ms=5))
        assert asked.measure_settings() == plain.measure_settings()
        assert asked.scenario_settings() != OnnxRuntimeTarget(server=ServerScenario(p99_ms=6)).scenario_settings()


class TestSelfCheck:
    def test_every_comparison_counts_once_of_either_kind(self, tmp_path: Path, target: OnnxRuntimeTarget) -> None:
        path, inputs = small_engine(tmp_path)
        told: list[int] = []
        found = self_check(EngineFile(target, path), inputs, 1, lambda: told.append(1))
        assert (found.false_alarms.count, found.found.count, len(told)) == (1, 1, 1)
        assert found.turns == (3,)
        assert len(found.same_ratios) == len(found.slowed_ratios) == 1
        assert type(found).model_validate_json(found.model_dump_json()) == found

    @pytest.mark.parametrize(("alarms", "slower", "passed"), [(5, 80, True), (6, 80, False), (5, 79, False)])
    def test_it_fails_for_too_many_false_alarms_and_for_too_little_power(
        self, alarms: int, slower: int, passed: bool
    ) -> None:
        found = SelfCheck(
            started=datetime.now(UTC),
            seconds=1,
            machine=machine_facts(),
            engine="an engine",
            false_alarms=Rate(hits=alarms, count=100),
            found=Rate(hits=slower, count=100),
            same_ratios=(1.0,),
            slowed_ratios=(0.95,),
            turns=(24,),
        )
        assert found.passed is passed
        assert found.found.interval.low < found.found.share < found.found.interval.high


class TestWorker:
    def test_a_description_and_a_look_at_the_outputs_come_from_the_process(
        self, file: EngineFile, data: Dataset
    ) -> None:
        with EngineProcess(file.target, file.path) as process:
            description = process.describe()
            with file.target.open(file.path) as engine:
                assert description == engine.describe()
            inputs = numpy_inputs(data.example(3))
            assert process.examine(inputs)["logits"].shape == (3, 4)
            assert process.examine(inputs)["logits"].finite
            assert not process.examine({name: np.full_like(each, np.nan) for name, each in inputs.items()})[
                "logits"
            ].finite
