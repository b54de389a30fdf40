"""Random numbers without hidden state: each use derives its own seed from the run's and from what it is for."""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager

import torch


def derive(seed: int, *parts: str | int) -> int:
    """A 63-bit seed for one purpose, such as ``derive(17, "train", epoch, step)``; equal arguments give equal seeds."""
    text = "\x1f".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *parts: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive`, so that no use depends on how often another one drew."""
    return torch.Generator().manual_seed(derive(seed, *parts))


def seed_global(seed: int, *parts: str | int) -> None:
    """Seed torch's global generators, which dropout draws from."""
    torch.manual_seed(derive(seed, *parts))  # pyright: ignore[reportUnknownMemberType] - torch leaves the seed untyped


@contextmanager
def seeded(seed: int, *parts: str | int) -> Generator[None, None, None]:
    """Within the block the global CPU generator, from which modules draw their first weights, is seeded by `derive`."""
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType] - torch leaves devices untyped
        seed_global(seed, *parts)
        yield
