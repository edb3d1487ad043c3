"""A short causal convolution over time, one filter a channel, that can be continued from call to call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.nn.initialization import start_as


class ShortConvolution(nn.Module):
    """Depthwise causal convolution: y[t, c] = bias[c] + sum over i of weight[c, i] * x[t - i, c].

    Tap 0 weighs the current token and tap i the token i steps AGO, so that a filter reads like the delays it
    makes; `torch.nn.Conv1d` counts the other way (its last tap is the current token). There is no activation.

    Args:
        channels: number of channels C.
        kernel_size: number of taps, at least 1.
        bias: whether to add a bias per channel.
        delay: the filter starts as a pure delay by this many tokens, 0 being the identity; one number, or one a
            channel. None starts it as torch starts its own convolutions, and Mamba with them: uniform within
            1 / sqrt(kernel_size).

    Raises:
        ValueError: there is no tap, or `delay` does not fit into the kernel.
    """

    def __init__(
        self, channels: int, kernel_size: int = 4, bias: bool = False, delay: int | Sequence[int] | None = 0
    ) -> None:
        super().__init__()
        if kernel_size < 1:
            raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
        delays = [delay] * channels if isinstance(delay, int) else delay
        if delays is not None and (len(delays) != channels or not all(0 <= d < kernel_size for d in delays)):
            given = (
                delay
                if isinstance(delay, int)
                else f"{len(delays)} of {min(delays, default=0)} to {max(delays, default=0)}"
            )
            raise ValueError(
                f"delay must be a number in [0, kernel_size) = [0, {kernel_size}) or {channels} of them, not {given}"
            )
        self.channels = channels
        self.kernel_size = kernel_size
        self.delays = delays
        self.weight = nn.Parameter(torch.empty(channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again from the delays, or from uniform taps (and bias) where there are none."""
        if self.delays is None:
            bound = 1 / math.sqrt(self.kernel_size)
            nn.init.uniform_(self.weight, -bound, bound)
            if self.bias is not None:
                nn.init.uniform_(self.bias, -bound, bound)
        else:
            start_as(self.weight, F.one_hot(torch.tensor(self.delays), self.kernel_size))
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Convolve along time, in float32 or finer whatever autocast says.

        Args:
            x: [B, T, C], or [1, T, C] with `cu_seqlens`.
            state: [N, kernel_size - 1, C], the inputs before the first token, oldest first; None means zeros.
            cu_seqlens: [N + 1] boundaries of packed sequences (some may be empty); N = B without it.
            output_state: whether to return the last kernel_size - 1 inputs of each sequence.

        Returns:
            y, shape and dtype of `x`, and the new state in the dtype of `x`, or None.

        Raises:
            ValueError: `cu_seqlens` with B other than 1.
        """
        history = self.kernel_size - 1
        if cu_seqlens is None:
            padded = F.pad(x, (0, 0, history, 0)) if state is None else torch.cat([state.to(x.dtype), x], dim=1)
            # A copy: a view would keep the whole call's inputs in memory.
            tail = padded[:, padded.shape[1] - history :].clone() if output_state else None
            return self._convolve(padded), tail

        # Every packed sequence is laid out behind a history of its own, so none can see the one before it.
        if x.shape[0] != 1:
            raise ValueError(f"packed sequences (cu_seqlens) need B = 1, not {x.shape[0]}")
        sequences = len(cu_seqlens) - 1
        boundaries = cu_seqlens.to(x.device, torch.int64)
        offsets = history * torch.arange(1, sequences + 1, device=x.device)
        rows = torch.arange(x.shape[1], device=x.device)
        rows = rows + offsets.repeat_interleave(boundaries.diff(), output_size=x.shape[1])
        back = torch.arange(-history, 0, device=x.device)
        padded = x.new_zeros(x.shape[1] + sequences * history, x.shape[2]).index_copy(0, rows, x[0])
        if state is not None:
            before = (boundaries[:-1] + offsets)[:, None] + back  # [N, kernel_size - 1]
            padded = padded.index_copy(0, before.flatten(), state.to(x.dtype).flatten(0, 1))
        y = self._convolve(padded[None])[:, rows - history]
        last = (boundaries[1:] + offsets)[:, None] + back  # [N, kernel_size - 1]
        return y, padded[last] if output_state else None

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        """Convolve one token a row, [N, C], changing `state` [N, kernel_size - 1, C] in place; see `forward`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        window = torch.cat([state.to(dtype), x.to(dtype).unsqueeze(1)], dim=1)  # [N, kernel_size, C]
        state.copy_(window[:, 1:])
        y = (window * self.weight.to(dtype).mT.flip(0)).sum(dim=1)
        if self.bias is not None:
            y = y + self.bias.to(dtype)
        return y.to(x.dtype)

    def _convolve(self, padded: Tensor) -> Tensor:
        """[B, kernel_size - 1 + T, C] -> [B, T, C]."""
        if padded.shape[1] < self.kernel_size:  # T = 0, which conv2d refuses
            return padded[:, :0]
        dtype = torch.promote_types(padded.dtype, torch.float32)
        # [B, L, C] in memory IS an image of height 1 stored channels-last, so nothing has to be transposed. On one
        # CPU core this takes half the time, or less, of conv1d or of a sum of shifted products.
        image = padded.to(dtype).unsqueeze(1).permute(0, 3, 1, 2)  # [B, C, 1, L]
        filters = self.weight.to(dtype).flip(1)[:, None, None]  # [C, 1, 1, kernel_size], oldest token first
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(padded.device.type, enabled=False):
            y = F.conv2d(image, filters, bias, groups=self.channels)  # [B, C, 1, T]
        return y.squeeze(2).transpose(1, 2).to(padded.dtype)
