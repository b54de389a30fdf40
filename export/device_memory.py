"""What a process takes of the GPU's memory, counted by what is free before and after."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir


class DeviceMemory:
    """Counts what the GPU loses while a block runs.

    Only that is told everywhere: NVML knows processes by numbers that in a container mean others. Several engines are
    opened at once to be timed in turns, so one process at a time counts; what no engine of ours takes or gives back
    meanwhile is counted with the block.
    """

    def __init__(self) -> None:
        self.taken_bytes = 0

    @contextmanager
    def counted(self) -> Generator[None]:
        """Add what the block takes; CUDA's own context in this process is made before, and is not counted."""
        import torch

        with _alone():
            torch.cuda.synchronize()
            before = torch.cuda.mem_get_info()[0]
            yield
            torch.cuda.synchronize()
            self.taken_bytes += before - torch.cuda.mem_get_info()[0]


@contextmanager
def _alone() -> Generator[None]:
    """Wait until no other process of this user is in such a block; the lock dies with its process."""
    with (Path(gettempdir()) / f"potstill-{os.getuid()}-gpu.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
