"""Exports without what torch.onnx does anew each time, though it is always the same."""

from functools import cache
from typing import Any

from torch.onnx._internal.exporter._registration import ONNXRegistry


def make_brief() -> None:
    """For the rest of this process: the sources of torch's 500 translations to ONNX are read once, not in each export.

    That takes half a second, and tests export hundreds of times. Every export gets a table of its own, since it adds
    the caller's translations to it.
    """
    read = cache(ONNXRegistry.from_torchlib)

    def copied(**settings: Any) -> ONNXRegistry:
        whole, own = read(**settings), ONNXRegistry()
        own.__dict__.update(whole.__dict__)
        own.functions = {target: list(found) for target, found in whole.functions.items()}
        return own

    setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))  # noqa: B010 - torch declares it a method of the class
