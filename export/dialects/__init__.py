"""One quantized model, written the way each runtime fuses best."""

from .graph import (
    LAYER_OPERATORS,
    RECTIFIERS,
    drop_unused,
    inferred_shapes,
    initializers,
    is_in_groups,
    makers,
    readers,
)
from .onnxruntime_cpu import for_onnxruntime_cpu
from .onnxruntime_cuda import for_onnxruntime_cuda
from .openvino import for_openvino

__all__ = [
    "LAYER_OPERATORS",
    "RECTIFIERS",
    "drop_unused",
    "for_onnxruntime_cpu",
    "for_onnxruntime_cuda",
    "for_openvino",
    "inferred_shapes",
    "initializers",
    "is_in_groups",
    "makers",
    "readers",
]
