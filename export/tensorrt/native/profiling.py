"""What an engine tells of its layers: the inspector's JSON, and their times."""

from typing import TYPE_CHECKING, SupportsFloat

if TYPE_CHECKING:
    import tensorrt as trt


def engine_information(engine: "trt.ICudaEngine") -> str:
    """The inspector's JSON of all layers."""
    import tensorrt as trt

    return engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)


class LayerTimes:
    """Milliseconds of every call of every layer."""

    def __init__(self) -> None:
        self.by_layer: dict[str, list[float]] = {}

    def profiler(self) -> "trt.IProfiler":
        """One that writes here; keep it as long as a context has it."""
        import tensorrt as trt

        by_layer = self.by_layer

        class Writing(trt.IProfiler):
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)  # TensorRT's own class must be initialised by its name

            def report_layer_time(self, layer_name: str, ms: SupportsFloat) -> None:
                by_layer.setdefault(layer_name, []).append(float(ms))

        return Writing()
