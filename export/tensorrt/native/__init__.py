"""The thin layer that calls TensorRT: every import of the package is inside a function, and types come from its stubs.

Checked strictly under the stubs of TensorRT 10 and 11 by `make typecheck-tensorrt`.
"""
