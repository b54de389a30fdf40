"""Timing so short that its numbers say nothing: what all tests get, which state facts about everything else."""

from potstill.export import latency, lengthened, offline

BRIEF = {
    latency: {
        "WARM_UP_SECONDS": 0.01,
        "MIN_SECONDS": 0.01,
        "MAX_SECONDS": 0.02,
        "ROUND_TURNS": 3,
        "MIN_ROUNDS": 1,
        "MAX_ROUNDS": 1,
        "P99_SAMPLES": 30,
        "PART_WARM_UP_SECONDS": 0.002,
        "PART_SECONDS": 0.005,
        "PART_TURNS": 3,
    },
    lengthened: {"CALIBRATION_RUNS": 5},
    offline: {"WARM_UP_SECONDS": 0.01, "SIZE_SECONDS": 0.02, "TURNS": 2},
}
"""One round of three turns, and a few runs in each."""

USUAL = {module: {name: getattr(module, name) for name in values} for module, values in BRIEF.items()}


def make_brief() -> None:
    """For the rest of this process: with the usual lengths, timing would take most of the tests' time."""
    for module, values in BRIEF.items():
        for name, value in values.items():
            setattr(module, name, value)
