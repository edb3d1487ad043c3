"""Processes in a line, each of which holds the part of a sequence that comes after its neighbour's."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from echo_ska.parallel.traffic import Traffic


class Line:
    """The processes of a group in the order of their ranks, and what they send along it.

    Args:
        group: of `torch.distributed`, None for all processes.
        traffic: counts what this process sends.

    Raises:
        ValueError: there is no process group, or this process is not in it.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, traffic: Traffic | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "there is no process group: call torch.distributed.init_process_group first, in every process"
            )
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is not in the group: only its members may read a part")
        self.traffic = Traffic() if traffic is None else traffic

    def shift(self, message: Tensor, distance: int, name: str) -> Tensor:
        """Hand `message` on to the process `distance` ranks later; returns what comes from as many ranks earlier.

        Zeros come where there is none. Its adjoint is the shift by the same distance the other way: gradients take
        the same steps back, so that a backward pass sends as many bytes as a forward pass.

        Args:
            message: of one shape and dtype in all processes.
            distance: at least 1, the same in all processes.
            name: what `Traffic` counts it under.
        """
        received: Tensor = _Shift.apply(message, self, distance, name)
        return received

    def send_and_receive(self, message: Tensor, distance: int, name: str, phase: str) -> Tensor:
        """`shift` without its gradient; a negative distance hands on to earlier ranks."""
        to, origin = self.rank + distance, self.rank - distance
        received = torch.zeros_like(message, memory_format=torch.contiguous_format)
        message, work = message.detach().contiguous(), []
        if 0 <= to < self.world:
            self.traffic.count(name, phase, message)
            work.append(dist.P2POp(dist.isend, message, group=self.group, group_peer=to))
        if 0 <= origin < self.world:
            work.append(dist.P2POp(dist.irecv, received, group=self.group, group_peer=origin))
        for request in dist.batch_isend_irecv(work) if work else ():
            request.wait()
        return received

    def gather(self, numbers: list[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> list[list[Any]]:
        """The numbers that every process gives, as many in each, by rank."""
        own = torch.tensor(numbers, device=device, dtype=dtype)
        found = [torch.empty_like(own) for _ in range(self.world)]
        self.traffic.count("agreement", "collective", own)
        dist.all_gather(found, own, group=self.group)
        return [tensor.tolist() for tensor in found]

    def sum_(self, tensor: Tensor, name: str) -> Tensor:
        """`tensor`, replaced by its sum over all processes."""
        self.traffic.count(name, "collective", tensor)
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def broadcast_last_(self, tensor: Tensor, name: str) -> Tensor:
        """`tensor`, contiguous, replaced by that of the last process."""
        if self.rank == self.world - 1:
            self.traffic.count(name, "collective", tensor)
        dist.broadcast(tensor, group=self.group, group_src=self.world - 1)
        return tensor


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, message: Tensor, line: Line, distance: int, name: str) -> Tensor:
        ctx.line, ctx.distance, ctx.name = line, distance, name
        return line.send_and_receive(message, distance, name, "forward")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.line.send_and_receive(gradients[0], -ctx.distance, ctx.name, "backward"), None, None, None
