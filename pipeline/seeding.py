"""Random numbers without hidden state: each use derives its own seed from the run's and from what it is for."""

import hashlib

import torch


def derive(seed: int, *parts: str | int) -> int:
    """A 63-bit seed for one purpose, such as ``derive(17, "train", epoch, step)``; equal arguments give equal seeds."""
    text = "\x1f".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *parts: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive`, so that no use depends on how often another one drew."""
    return torch.Generator().manual_seed(derive(seed, *parts))
