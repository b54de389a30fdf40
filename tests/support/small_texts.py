"""A small set of texts whose class is told by a few words, as files of every form."""

import csv
import json
from pathlib import Path
from random import Random

import numpy as np

WORDS = {0: ("dull", "tedious", "awful", "lifeless"), 1: ("moving", "brilliant", "charming", "funny")}
FILLERS = ("the", "film", "is", "a", "story", "of", "two", "brothers", "and", "their", "dog", "in", "paris", "it")


def texts(count: int, seed: int) -> tuple[list[str], list[int]]:
    """So many texts of 3 to 14 words, classes in turns."""
    draws = Random(seed)
    made: list[str] = []
    labels = [number % 2 for number in range(count)]
    for label in labels:
        words = [draws.choice(FILLERS) for _ in range(draws.randint(2, 13))]
        words.insert(draws.randrange(len(words) + 1), draws.choice(WORDS[label]))
        made.append(" ".join(words))
    return made, labels


def write(file: Path, lines: list[str], labels: list[int] | list[str]) -> Path:
    """In the form that the file's ending says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "label": label} for text, label in zip(lines, labels, strict=True)]
    if file.suffix == ".npz":
        np.savez(file, text=np.frombuffer("\n".join(lines).encode(), np.uint8), y=np.array(labels))
    elif file.suffix == ".jsonl":
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        with file.open("w", newline="") as stream:
            table = csv.DictWriter(stream, ["text", "label"], delimiter="\t" if file.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return file


def write_splits(folder: Path, *, train: int = 320, test: int = 96, ending: str = ".tsv") -> Path:
    """`train` and `test` in a folder."""
    for seed, (name, count) in enumerate({"train": train, "test": test}.items()):
        write(folder / f"{name}{ending}", *texts(count, seed))
    return folder
