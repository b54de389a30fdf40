"""Whether TensorRT and a GPU are here, and which."""

from pathlib import Path

from ....pipeline.errors import ExportError, MissingDependency
from ..manifest import Device

DRIVER = Path("/sys/module/nvidia/version")


def demand_library() -> None:
    """Raise MissingDependency unless the package can be imported."""
    try:
        import tensorrt  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except (ImportError, OSError) as error:  # OSError: one of its shared libraries is not there
        raise MissingDependency(
            f"the target tensorrt needs TensorRT 10 or 11 ({error}): pip install tensorrt. Without it, take the target "
            "out."
        ) from error


def this_device() -> Device:
    """The GPU that torch uses; MissingDependency without TensorRT, ExportError without a GPU."""
    demand_library()
    import tensorrt as trt
    import torch

    if not torch.cuda.is_available():
        raise ExportError("the target tensorrt needs an NVIDIA GPU that torch can use, and there is none: take it out")
    return Device(
        gpu=torch.cuda.get_device_name(),
        compute_capability=torch.cuda.get_device_capability(),
        tensorrt=trt.__version__,
        cuda=torch.version.cuda or "unknown",
        driver=DRIVER.read_text().strip() if DRIVER.is_file() else "unknown",
    )
