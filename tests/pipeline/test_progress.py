"""Facts about what a person sees of long work."""

import io
import re

import pytest

from potstill.pipeline.progress import PlainProgress, RichProgress, Silent, duration_text


def test_plain_lines_tell_share_rate_time_left_and_figures() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, interval=0)
    progress.say("begins")
    with progress.track("distill", 4) as tracker:
        tracker.advance(1)
        tracker.advance(1, loss=0.25)
        tracker.advance(2, loss=0.125)
    first, told, last = stream.getvalue().splitlines()
    assert first == "begins"
    assert re.fullmatch(r"distill: 2 of 4 \(50 %\), \S+/s, .+ left, loss 0.25", told)
    assert re.fullmatch(r"distill: done in .+ s, loss 0.125", last)


def test_plain_lines_come_seldom() -> None:
    stream = io.StringIO()
    with PlainProgress(stream, interval=60).track("distill", 1000) as tracker:
        for _ in range(1000):
            tracker.advance()
    assert len(stream.getvalue().splitlines()) == 1


def test_work_that_fails_is_not_told_as_done() -> None:
    stream = io.StringIO()
    for progress in (PlainProgress(stream), RichProgress(stream)):
        with pytest.raises(ValueError, match="no"), progress.track("distill", 2):
            raise ValueError("no")
    assert "done" not in stream.getvalue()


def test_bars_leave_one_line_for_each_piece_of_work() -> None:
    stream = io.StringIO()
    with RichProgress(stream) as progress:
        progress.say("a [bracket] stays")
        with progress.track("distill", 2) as tracker:
            tracker.advance(2, loss=0.5)
    assert "a [bracket] stays\n" in stream.getvalue()
    assert re.search(r"distill: done in .+ s, loss 0.5", stream.getvalue())


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Silent().track("distill", 2) as tracker:
        tracker.advance(1, loss=1.0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min 1 s"), (3599.9, "1 h 0 min"), (7260, "2 h 1 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
