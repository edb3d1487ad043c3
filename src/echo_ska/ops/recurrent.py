"""Token by token: the definition of the op, and the decoder."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from echo_ska.algebra import SufficientStatistics, concatenate, read
from echo_ska.ops.arguments import Arguments
from echo_ska.ops.state import RecurrentState, choose_rows


def recurrent_attention(arguments: Arguments) -> tuple[Tensor, RecurrentState]:
    """Read and write one token after the other, all in the accumulator's dtype.

    Returns:
        The output [B, T, H, P] and the state after the last token of each sequence.
    """
    start = arguments.start()
    if arguments.cu_seqlens is None:
        return _run(arguments, start)
    runs = [
        _run(arguments.tokens(begin, end), start.select_rows(row), row)
        for row, (begin, end) in zip(
            torch.arange(len(arguments.cu_seqlens) - 1, device="cpu").split(1),
            itertools.pairwise(arguments.cu_seqlens),
            strict=True,
        )
    ]
    return torch.cat([output for output, _ in runs], dim=1), concatenate([state for _, state in runs])


def _run(arguments: Arguments, state: RecurrentState, sequences: Tensor | None = None) -> tuple[Tensor, RecurrentState]:
    """One dense batch [B, T, ...] from `state`; `sequences` [B] are its rows' numbers, for errors."""
    statistics, frozen, position = state.statistics, state.frozen_statistics, state.position
    batch, time, heads, _ = arguments.query.shape
    outputs = [statistics.gram.new_zeros(batch, 0, heads, arguments.value.shape[-1])]
    step = 1 if arguments.causal else max(time, 1)  # a non-causal read waits for the last token
    for begin in range(0, time, step):
        tokens = arguments.tokens(begin, begin + step)
        statistics = statistics + SufficientStatistics.from_tokens(tokens.key, tokens.value, tokens.write_weight)
        position = position + step
        outputs.append(_read(statistics if frozen is None else frozen, tokens, sequences))
        if frozen is not None and arguments.refresh_interval is not None:
            frozen = choose_rows(position % arguments.refresh_interval == 0, statistics, frozen)
    return torch.cat(outputs, dim=1), RecurrentState(statistics, frozen, position)


def _read(statistics: SufficientStatistics, tokens: Arguments, sequences: Tensor | None) -> Tensor:
    dtype = statistics.gram.dtype
    output = read(
        statistics,
        tokens.query.transpose(1, 2).to(dtype),  # [B, H, T, r]
        ridge=tokens.ridge[:, None, None],
        power=tokens.power,
        gain=tokens.gain[:, None, None],
        scale=tokens.scale[:, None, None],
        blend=None if tokens.blend is None else tokens.blend.transpose(1, 2).to(dtype),
        batch_rows=sequences,
    )
    return output.transpose(1, 2)  # [B, T, H, P]
