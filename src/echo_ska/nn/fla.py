"""Functions of flash-linear-attention, whose Triton kernels run recurrences on a GPU."""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Kernel = Callable[..., tuple[Tensor, Tensor | None]]


@functools.cache
def fla_function(name: str) -> Kernel | None:
    """A function by its full name, as in "fla.ops.gla.chunk_gla"; None where flash-linear-attention is missing or old.

    `pip install 'echo-ska[gpu]'` installs it.
    """
    module, _, function = name.rpartition(".")
    try:
        kernel: Kernel = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:  # not there, or an old version
        logger.info("%s is replaced by PyTorch: flash-linear-attention has none here (%s)", function, error)
        return None
    logger.info("recurrences by flash-linear-attention's %s", function)
    return kernel


def kernel_for(name: str, tokens: Tensor, gated: bool = True) -> Kernel | None:
    """The function that runs these tokens [N, T, H, any], or None where PyTorch does: not on a GPU, or in float64.

    Args:
        name: see `fla_function`.
        tokens: any of its arguments.
        gated: whether it decays by one gate a head, whose gradient some versions of Triton break.
    """
    if not tokens.is_cuda or tokens.dtype != torch.float32 or tokens.shape[1] < 2:
        return None
    if gated and torch.is_grad_enabled() and _miscompiled(torch.cuda.get_device_capability(tokens.device)):
        return None
    return fla_function(name)


@functools.cache
def _miscompiled(capability: tuple[int, int]) -> bool:
    """Whether the Triton that is installed breaks the gradient of one gate a head on this GPU.

    Versions 3.4 to 3.7.0 do on Hopper; flash-linear-attention refuses the backward pass there (its issue 640), which
    is too late once training has begun.
    """
    try:
        installed = version("triton")
    except PackageNotFoundError:
        return False
    numbers = tuple(map(int, re.findall(r"\d+", installed)[:3]))
    broken = capability[0] == 9 and (3, 4) <= numbers < (3, 7, 1)
    if broken:
        logger.warning(
            "Triton %s computes wrong gradients on this GPU for the decay of Mamba-2 and both delta rules: PyTorch "
            "trains them, more slowly; install triton>=3.7.1 for flash-linear-attention's kernels",
            installed,
        )
    return broken


def scan_by(kernel: Kernel, memory: Tensor, arguments: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """All tokens by a kernel, which keeps the memory transposed.

    Args:
        kernel: with the signature of flash-linear-attention's chunk functions.
        memory: before the first token, [N, H, P, r].
        arguments: tensors of the tokens by name, [N, T, H, ...].

    Returns:
        What is read, [N, T, H, P], and the memory after the last token.
    """
    read, final = kernel(
        **{name: tensor.contiguous() for name, tensor in arguments.items()},
        scale=1.0,
        initial_state=memory.mT.contiguous(),
        output_final_state=True,
    )
    assert final is not None, "it was asked for"
    return read, final.mT.contiguous()
