"""A process that decodes images, started as a script: requests come by standard input, answers go by standard output.

A first byte says that it is ready. A request is three numbers of eight bytes (to what the shorter side is brought, the
size of the middle, the length of the encoded image) and the image. An answer is one byte, then the pixels after a 0, or
after a 1 the length of a message in eight bytes and the message.
"""

import runpy
import struct
import sys
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NUMBER = struct.Struct(">Q")
REQUEST = struct.Struct(">QQQ")
READY = b"\2"
DECODED, REFUSED = b"\0", b"\1"


def serve() -> None:
    """Answer until the requests end."""
    decoded = runpy.run_path(str(Path(__file__).with_name("decoding.py")))["decoded"]
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(READY)
    answers.flush()
    while request := requests.read(REQUEST.size):
        resize, size, length = REQUEST.unpack(request)
        encoded = requests.read(length)
        try:
            pixels: NDArray[np.uint8] = decoded(BytesIO(encoded), resize, size)
            answers.write(DECODED + pixels.tobytes())
        except Exception as error:  # whatever a damaged image makes Pillow raise is told of that image
            message = _told(error).encode()
            answers.write(REFUSED + NUMBER.pack(len(message)) + message)
        answers.flush()


def _told(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "is no image that Pillow can read"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve()
