"""The processes of one run, as ``torchrun`` or ``accelerate launch`` starts them side by side.

The main process does what a run alone would do: it reads, decides, measures, writes and speaks. The others take part in
what the networks compute (`sharding`), and hear of everything that depends on time or on the machine from the main one.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed
from pydantic import JsonValue
from torch import Tensor

from .errors import LostProcessError, MissingDependency, PotstillError

Made = TypeVar("Made")

dist: Any = torch.distributed
"""Torch leaves its types open."""

WAITING = timedelta(days=30)
"""How long the others wait for what the main process does alone, such as measuring. A death is noticed at once."""
LAST_WORD_SECONDS = 3.0
"""How long a process that fails waits to hear that the main one failed as well, and says it."""


@dataclass(frozen=True)
class _Member:
    """One process, as messages name it."""

    rank: int
    pid: int
    host: str

    @property
    def gone(self) -> bool:
        """Whether it has ended; of another machine's processes nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            return psutil.Process(self.pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"process {self.rank} (pid {self.pid} on {self.host})"


class Processes:
    """One process's view of all that work on a run; `ALONE` where there is only one.

    What is exchanged is in the same order in every process. Each call raises LostProcessError where another process
    has ended.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count
        self._by_itself = False
        self._members: tuple[_Member, ...] = ()
        self._control: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def together(self) -> bool:
        """Whether the others take part in what is computed now."""
        return self.count > 1 and not self._by_itself

    def told(self, make: Callable[[], JsonValue]) -> Any:
        """What `make` returns in the main process, which alone calls it; where there are others, it passes as JSON."""
        if not self.together:
            return make()
        content = b""
        if self.main:
            with self._alone():
                content = json.dumps(make()).encode()
        return json.loads(self._passed_on(content))

    def first_in_main(self, work: Callable[[], Made]) -> Made:
        """What `work` returns in each process; the others begin when the main one is done, and never if it fails."""
        if not self.together:
            return work()
        if not self.main:
            self.wait()
            return work()
        with self._alone():
            done = work()
        self.wait()
        return done

    def wait(self) -> None:
        """Until every process has come here."""
        if self.together:
            self.told(lambda: None)
            self.each(None)

    def each(self, value: JsonValue) -> list[Any]:
        """What each process gives, in their order."""
        if not self.together:
            return [value]
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        with self._heard():
            dist.all_gather(sizes, torch.tensor([len(mine)]), group=self._control)
            longest = max(int(size) for size in sizes)
            rows = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.count)]
            dist.all_gather(rows, torch.nn.functional.pad(mine, (0, longest - len(mine))), group=self._control)
        return [json.loads(_bytes(row[: int(size)])) for row, size in zip(rows, sizes, strict=True)]

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows (B / count, …) of all processes, in their order: (B, …)."""
        # Images stay in channels-last order, in which they come.
        turned = rows.ndim == 4 and not rows.is_contiguous() and rows.is_contiguous(memory_format=torch.channels_last)
        mine = (rows.permute(0, 2, 3, 1) if turned else rows).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        with self._heard():
            dist.all_gather(parts, mine)
        whole = torch.cat(parts)
        return whole.permute(0, 3, 1, 2) if turned else whole

    def own(self, rows: Tensor) -> Tensor:
        """Of the rows (B, …) of a whole batch, those of this process."""
        size = len(rows) // self.count
        return rows[self.rank * size : (self.rank + 1) * size]

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor's sum over the processes."""
        found: dict[int, Tensor] = {}
        # All of one type pass at once: one exchange costs more than the bytes of most weights.
        for dtype in {tensor.dtype: None for tensor in tensors}:
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[place].reshape(-1) for place in places])
            with self._heard():
                dist.all_reduce(flat)
            sizes = [tensors[place].numel() for place in places]
            for place, part in zip(places, torch.split(flat, sizes), strict=True):
                found[place] = part.view(tensors[place].shape)
        return [found[place] for place in range(len(tensors))]

    def largest(self, values: Tensor) -> Tensor:
        """Each value's largest over the processes."""
        most = values.clone()
        with self._heard():
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return most

    @torch.no_grad()
    def take_over(self, tensors: Sequence[Tensor]) -> None:
        """Bring the main process's values into the tensors of all, in place."""
        if not self.together:
            return
        for dtype in {tensor.dtype: None for tensor in tensors}:
            chosen = [tensor for tensor in tensors if tensor.dtype == dtype]
            # Neither gloo nor NCCL sends every type; bytes they all send.
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in chosen]).view(torch.uint8)
            with self._heard():
                dist.broadcast(flat, 0)
            parts = torch.split(flat.view(dtype), [tensor.numel() for tensor in chosen])
            for tensor, part in zip(chosen, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def _passed_on(self, content: bytes) -> bytes:
        size = torch.tensor([len(content)])
        with self._heard():
            dist.broadcast(size, 0, group=self._control)
            passed = torch.zeros(int(size), dtype=torch.uint8)
            if self.main:
                passed = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            dist.broadcast(passed, 0, group=self._control)
        return _bytes(passed)

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Within the block this process computes whatever it computes by itself."""
        before, self._by_itself = self._by_itself, True
        try:
            yield
        finally:
            self._by_itself = before

    @contextmanager
    def _heard(self) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:  # what gloo and NCCL say is no type of its own
            raise self._lost(str(error).splitlines()[0]) from error

    def _lost(self, reason: str) -> LostProcessError:
        others = [member for member in self._members if member.rank != self.rank]
        for _ in range(20):  # a process's connections end a moment before it does
            if any(member.gone for member in others):
                break
            time.sleep(0.01)
        gone = [str(member) for member in others if member.gone]
        who = f"{' and '.join(gone)} of {self.count} has ended" if gone else f"another of {self.count} processes ended"
        return LostProcessError(
            f"{who}, so the run stops ({reason}). What went wrong is said by that process, or by what started them. "
            "The same command goes on from the last checkpoint, with this number of processes or another one"
        )

    def begin(self) -> None:
        """Get to know the others, once torch's process group stands."""
        with self._heard():
            # Of its own, on the CPU: a GPU would wait for the main process's measurements at full load.
            self._control = dist.new_group(backend="gloo", timeout=WAITING)
        me: JsonValue = {"rank": self.rank, "pid": os.getpid(), "host": socket.gethostname()}
        self._members = tuple(_Member(**each) for each in self.each(me))


ALONE = Processes()


def _bytes(values: Tensor) -> bytes:
    return values.numpy().tobytes()


@contextmanager
def joined() -> Generator[Processes]:
    """The processes that were started together with this one; `ALONE` where it was started by itself.

    An error that ends all of them is raised in the main one alone; the others leave without a word. Raises
    MissingDependency without accelerate, LostProcessError where another process ends.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield ALONE
        return
    processes = _started()
    try:
        with _terminated_by_others(processes):
            yield processes
            processes.wait()
    except PotstillError as error:
        if not _has_the_last_word(processes, error):
            raise SystemExit(error.exit_code) from error
        raise
    except KeyboardInterrupt as interrupt:
        if not processes.main:
            raise SystemExit(128 + signal.SIGINT) from interrupt
        raise
    dist.destroy_process_group()


def _started() -> Processes:
    """Accelerate chooses the backend and the device from what `torchrun` left in the environment."""
    try:
        from accelerate import PartialState  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        if os.environ.get("RANK", "0") != "0":
            raise SystemExit(MissingDependency.exit_code) from error  # one of them says it
        raise MissingDependency(
            f"several processes (WORLD_SIZE is {os.environ['WORLD_SIZE']}) need accelerate: "
            "pip install 'potstill[parallel]'; or start one process, without torchrun"
        ) from error
    state: Any = PartialState(cpu=not torch.cuda.is_available())
    processes = Processes(state.process_index, state.num_processes)
    processes.begin()
    return processes


@contextmanager
def _terminated_by_others(processes: Processes) -> Generator[None]:
    """`torchrun` answers the death of one process with SIGTERM to the rest, wherever they are."""

    def ended(number: int, frame: object) -> None:
        raise processes._lost("SIGTERM")  # pyright: ignore[reportPrivateUsage]

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _has_the_last_word(processes: Processes, error: PotstillError) -> bool:
    """Whether this process is to say what went wrong: the main one always, others where the main one does not."""
    # What starts the processes may start them again, beside the same store.
    key = f"potstill: the main process has failed {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    seconds = timedelta(seconds=LAST_WORD_SECONDS)
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=seconds)
        if processes.main:
            store.set(key, str(error))
            return True
        store.wait([key], seconds)
        said = store.get(key).decode()
        return said != str(error) and not isinstance(error, LostProcessError)
    except (RuntimeError, dist.DistError, KeyError):  # whoever held the store is gone, and with it the main process
        return True
