"""Facts about TensorRT's messages: one error that names the node and says how to mend it."""

import pytest

from potstill.export.tensorrt.messages import Messages, ParserProblem, parser_failure

NO_KERNEL = (
    "[optimizer.cpp::computeCosts::4048] Error Code 10: Internal Error (Could not find any implementation for node "
    "conv1/Conv + relu.)"
)


def test_errors_are_told_once_without_their_place_in_the_source() -> None:
    messages = Messages()
    for _ in range(2):
        messages.add("ERROR", NO_KERNEL)
    messages.add("INFO", "ten layers")
    text = str(messages.failure("TensorRT cannot build an engine of model.onnx"))
    assert text.splitlines()[0] == "TensorRT cannot build an engine of model.onnx:"
    assert text.count("Could not find any implementation for node conv1/Conv") == 1
    assert "optimizer.cpp" not in text
    assert "ten layers" not in text


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        (NO_KERNEL, "workspace_mb"),
        (
            "[virtualMemoryBuffer.cpp::resizePhysical::127] Error Code 2: OutOfMemory (no further information)",
            "smaller",
        ),
        (
            "4: [network.cpp::validate::2882] Error Code 4: Internal Error (image: kMIN dimensions in profile 0)",
            "`shapes`",
        ),
        ("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Magic tag does not match)", "build it again"),
        ("something never seen", "ONNX file"),
    ],
)
def test_each_kind_has_its_own_way_to_mend_it(said: str, mend: str) -> None:
    messages = Messages()
    messages.add("INTERNAL_ERROR", said)
    assert mend in str(messages.failure("it fails")).rpartition("Mend:")[2]


def test_many_errors_are_counted() -> None:
    messages = Messages()
    for number in range(8):
        messages.add("ERROR", f"problem {number}")
    text = str(messages.failure("it fails"))
    assert "problem 4" in text
    assert "problem 5" not in text
    assert "and 3 more" in text


def test_silence_is_told_too() -> None:
    assert "it says nothing" in str(Messages().failure("it fails"))


def test_warnings_become_remarks_of_readable_number() -> None:
    messages = Messages()
    for number in range(12):
        messages.add("WARNING", f"warning {number}")
    remarks = messages.remarks()
    assert remarks[0] == "TensorRT warns: warning 0"
    assert remarks[-1] == "TensorRT warns of 2 more things"
    assert len(remarks) == 11


class TestParser:
    def test_names_the_node_and_its_operator(self) -> None:
        problem = ParserProblem("head/Magic", "Magic", "No importer registered for op: Magic.")
        text = str(parser_failure("model.onnx", [problem, problem], Messages()))
        assert "TensorRT cannot read model.onnx:\n  head/Magic (Magic): No importer registered" in text
        assert text.count("No importer") == 1
        assert "Mend: replace Magic in the model" in text

    def test_a_problem_of_no_node_is_told_as_it_is(self) -> None:
        text = str(parser_failure("model.onnx", [ParserProblem("", "", "Failed to parse the file.")], Messages()))
        assert "\n  Failed to parse the file.\n" in text
        assert "onnx.checker" in text

    def test_without_problems_the_log_is_told(self) -> None:
        messages = Messages()
        messages.add("ERROR", "the file is too short")
        assert "the file is too short" in str(parser_failure("model.onnx", [], messages))
