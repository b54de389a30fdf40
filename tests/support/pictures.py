"""Small folders of images whose class can be seen."""

from pathlib import Path

import numpy as np

CLASSES = ("cat", "dog", "owl")
HEIGHT, WIDTH = 24, 30


def picture_folder(root: Path, *splits: str, each: int = 8, classes: tuple[str, ...] = CLASSES) -> Path:
    """`root/<split>/<class>/<number>.png`, every other one a `.jpg`: noise with a bright band, placed by the class."""
    from PIL import Image

    draws = np.random.default_rng(len(splits))
    for split in splits:
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for count in range(each):
                pixels = draws.normal(90, 20, (HEIGHT, WIDTH, 3))
                pixels[number * 8 : number * 8 + 8] += 110
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / f"{count}.{'jpg' if count % 2 else 'png'}")
    return root
