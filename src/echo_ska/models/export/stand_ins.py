"""What stands for the compiled kernels in an exported file: none is there, so none is chosen.

`echo_ska.models.export.source` puts these in the place of the functions of the same name in `ops/native` and
`ops/triton`. The package itself does not use them.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

NO_KERNELS = "this file holds the PyTorch routes alone; the package echo-ska has the kernels"


def why_not_native(arguments: Any) -> str:
    """Why no compiled CPU kernel can take a call."""
    return NO_KERNELS


def refusal(arguments: Any, chunk_size: int | None) -> str:
    """Why no Triton kernel can take a call."""
    return NO_KERNELS


def can_step(moments: Tensor) -> bool:
    """Whether a compiled CPU kernel can decode a token."""
    return False


def can_decode(moments: Tensor) -> bool:
    """Whether a Triton kernel can decode a token."""
    return False


def _no_kernel(*arguments: Any) -> NoReturn:
    raise RuntimeError(NO_KERNELS)


Step = Any  # the description of a token that a compiled kernel takes
describe = native_step = native_attention = triton_attention = decode_step = _no_kernel
