"""Several processes that train one model: who they are, and how their numbers become one.

Each process holds the whole panel and a replica of the model, and computes its share of every
step's batch: whole dates with all their stocks. The loss divides by counts of the whole batch, so
gradients, losses and readings of the processes *add up* to those of one process; every decision
(skip, reset, early stop) is then taken by each process from the same numbers. Rank 0 alone writes.
"""

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from atft_model.errors import InputError
from atft_model.settings import Place

T = TypeVar("T")

PATIENCE = datetime.timedelta(minutes=10)
"""How long a process waits for another one that lives but does not answer. One that dies is noticed
at once, by its launcher."""


@dataclass(frozen=True)
class Group:
    """The processes of one run; alone by default, and then every method costs nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, prints and reports."""
        return self.rank == 0

    def total(self, mine: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each; written into ``mine``."""
        if self.size > 1:
            dist.all_reduce(mine, dist.ReduceOp.SUM)
        return mine

    def largest(self, mine: Tensor) -> Tensor:
        """The elementwise maximum over all processes; written into ``mine``."""
        if self.size > 1:
            dist.all_reduce(mine, dist.ReduceOp.MAX)
        return mine

    def wait(self) -> None:
        """Returns when every process has come here."""
        self.total(torch.zeros(1))

    def mine(self, parts: Sequence[T]) -> Sequence[T]:
        """This process's part of as many equal parts as there are processes."""
        each = len(parts) // self.size
        return parts[self.rank * each : (self.rank + 1) * each]

    def replicate(self, model: nn.Module) -> nn.Module:
        """The model to call in training: its backward pass averages gradients over processes.

        ``find_unused_parameters`` is for what comes with it: gradients travel in buckets of a fixed
        layout, so that a resumed run adds them in the same order; and a parameter without gradient
        is left for its check to find.
        """
        if self.size == 1:
            return model
        return DistributedDataParallel(model, find_unused_parameters=True)

    def backward_of(self, replica: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Within it, the forward and backward pass of a part; the ``last`` one talks to others."""
        if isinstance(replica, DistributedDataParallel) and not last:
            return replica.no_sync()
        return nullcontext()

    def check_same(self, fact: Callable[[], str], what: str) -> None:
        """Refuses to go on where a process differs from rank 0.

        Args:
            fact: Computed only where there are several processes; of the same length in all.

        Raises:
            InputError: names the processes that differ.
        """
        if self.size == 1:
            return
        mine = torch.tensor(list(fact().encode()), dtype=torch.uint8)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(all_of_them, mine)
        others = [
            str(r) for r, its in enumerate(all_of_them) if not torch.equal(its, all_of_them[0])
        ]
        if others:
            raise InputError(
                f"training: {what} of rank {', '.join(others)} differ from those of rank 0; the "
                "machines must be alike (same code, versions, files); resume from the checkpoint"
            )


ALONE = Group()


@contextmanager
def open_group(place: Place, device: str) -> Iterator[Group]:
    """Joins the processes that ``torchrun`` started; alone where it did not.

    Args:
        device: The setting ``training.device``.

    Raises:
        InputError: more processes than CUDA devices on this machine.
    """
    if place.size == 1:
        yield ALONE
        return
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        if place.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"nproc: process {place.local_rank + 1} of this machine has no CUDA device of its "
                f"own, there are {torch.cuda.device_count()}; set nproc to that, or device to 'cpu'"
            )
        torch.cuda.set_device(place.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    yield Group(place.rank, place.size)
    # Only after a sound end: others may wait for ever for one that failed.
    dist.destroy_process_group()
