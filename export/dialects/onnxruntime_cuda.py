"""The form that ONNX Runtime's CUDA kernels suit."""

from typing import TYPE_CHECKING

from .global_pooling import pool_globally
from .graph import drop_unused
from .stored_weights import store_transposed

if TYPE_CHECKING:
    from onnx import ModelProto


def for_onnxruntime_cuda(model: "ModelProto") -> "ModelProto":
    """A copy in which weights in few bits lie as MatMulNBits reads them, and means over images are poolings.

    The CUDA provider has a pooling kernel for both orders of the axes, and multiplies by weights in few bits as the CPU
    does. Quantizers stay as they were exported: it has no int8 kernel that they could be written for.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    pool_globally(copy)
    store_transposed(copy)
    drop_unused(copy.graph)
    return copy
