"""Timing so short that its numbers say nothing, for tests of everything else about it."""

import pytest

from potstill.export import latency, lengthened, offline


def make_brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of three turns, and a few runs in each."""
    for name, value in (("WARM_UP_SECONDS", 0.01), ("MIN_SECONDS", 0.01), ("MAX_SECONDS", 0.02), ("ROUND_TURNS", 3)):
        monkeypatch.setattr(latency, name, value)
    monkeypatch.setattr(latency, "MIN_ROUNDS", 1)
    monkeypatch.setattr(latency, "MAX_ROUNDS", 1)
    monkeypatch.setattr(latency, "P99_SAMPLES", 30)
    monkeypatch.setattr(lengthened, "CALIBRATION_RUNS", 5)
    monkeypatch.setattr(offline, "SIZE_SECONDS", 0.02)
    monkeypatch.setattr(offline, "TURNS", 2)
