"""From image files to uint8 pixels: decoding in worker processes, what goes into which split, where the pixels lie."""
