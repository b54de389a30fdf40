"""TensorRT's log, collected instead of printed."""

from typing import TYPE_CHECKING

from ..messages import Messages

if TYPE_CHECKING:
    import tensorrt as trt


def logger_to(messages: Messages) -> "trt.ILogger":
    """A logger that hands everything over; keep it as long as anything that was made with it."""
    import tensorrt as trt

    class Collecting(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # TensorRT's own class must be initialised by its name

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            messages.add(severity.name, msg)

    return Collecting()
