"""One training run in several processes (torch.distributed), and the signals that ask it to stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from cctlib.stages import processes_started


@dataclass(frozen=True)
class Place:
    """Which of the processes this is, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes."""
        if self.world > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def gathered(self, value: object) -> list:
        """The `value` of every process, in order; each waits for all of them."""
        values = [value] * self.world
        if self.world > 1:
            distributed.all_gather_object(values, value)
        return values


@contextmanager
def processes(device: torch.device | str) -> Iterator[Place]:
    """Join the processes that torchrun started, each on its own GPU; without torchrun, be alone.

    Inside, cuDNN tries which of its convolutions is the fastest for each shape.
    """
    device = torch.device(device)
    world = processes_started()
    if world > 1 and device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if world > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield Place(distributed.get_rank() if world > 1 else 0, world, device)
    finally:
        torch.backends.cudnn.benchmark = before
        if world > 1:
            distributed.destroy_process_group()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Note a SIGTERM or SIGINT in the list handed out, instead of dying of it in the middle of a step.

    Once the block has ended, the signal is raised again and has its usual effect. A second signal has it at once.
    """
    noted: list[int] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        noted.append(number)
        restore()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        restore()
    if noted:
        signal.raise_signal(noted[0])
