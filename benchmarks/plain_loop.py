"""ONNX Runtime in a plain loop, as its own `onnxruntime_perf_test` has it: nothing of potstill is imported here.

    python benchmarks/plain_loop.py model.onnx input.npy binding | run

For every line on standard input, a number of runs, it prints a line: the seconds of each of them, as JSON.
"""

import json
import sys
from time import perf_counter

import numpy as np
import onnxruntime as ort


def main(model: str, array: str, how: str) -> None:
    """Load, warm up, and answer until the input ends."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    value = np.load(array)
    name = session.get_inputs()[0].name
    binding = session.io_binding()
    binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    feed = {name: value}
    for _ in range(20):
        session.run(None, feed)
        session.run_with_iobinding(binding)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            begun = perf_counter()
            if how == "binding":
                session.run_with_iobinding(binding)
            else:
                session.run(None, feed)
            seconds.append(perf_counter() - begun)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
