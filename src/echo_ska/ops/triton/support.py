"""Whether this backend can take a call, and why not; needs no triton."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from echo_ska.ops.arguments import Arguments
from echo_ska.ops.state import NOT_ITS_SUMS

MAX_RANK = 128
MAX_CHUNK_SIZE = 64
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@functools.cache
def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter is on, which runs kernels on the CPU (for tests)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def can_decode(moments: torch.Tensor) -> bool:
    """Whether the decoding kernel can take a token for a state with these moments, [N, H, 2 r + P, r]."""
    return moments.device.type == "cuda" and moments.shape[-1] <= MAX_RANK and installed()


def refusal(arguments: Arguments, chunk_size: int | None) -> str | None:
    """Why the call does not fit, and what to change; None if it does."""
    if not installed():
        return "triton is not installed: pip install 'echo-ska[gpu]'"
    device = arguments.query.device
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return f"the tensors are on {device}: move them to a GPU (or, to interpret the kernels, set TRITON_INTERPRET=1)"
    for name in ("query", "key", "value"):
        dtype = getattr(arguments, name).dtype
        if dtype not in DTYPES:
            return f"{name} is {dtype}: convert it to float32 or lower with .to()"
    rank = arguments.query.shape[-1]
    if rank > MAX_RANK:
        return f"the rank {rank} is above {MAX_RANK}: lower it"
    if chunk_size is not None and chunk_size > MAX_CHUNK_SIZE:
        return f"chunk_size {chunk_size} is above {MAX_CHUNK_SIZE}: lower it, or leave it None"
    interval, state = arguments.refresh_interval, arguments.initial_state
    if interval is not None and state is not None and not torch.compiler.is_compiling():
        return None if state.begins_with_its_sums(interval) else NOT_ITS_SUMS
    return None
