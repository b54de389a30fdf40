"""ONNX Runtime's sessions, on the CPU and on NVIDIA's GPUs."""
