"""The parts of the TensorRT runtime: what needs the package itself is in `native`, the rest runs anywhere."""
