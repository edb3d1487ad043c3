"""The op through Triton kernels: same contract as the chunked route."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ska.algebra import SufficientStatistics
from echo_ska.ops.arguments import Arguments
from echo_ska.ops.state import RecurrentState, choose_rows
from echo_ska.ops.triton.cuts import Cuts
from echo_ska.ops.triton.function import KoopmanRead

DEFAULT_CHUNK_SIZE = 32


@torch.compiler.disable
def triton_attention(arguments: Arguments, chunk_size: int | None = None) -> tuple[Tensor, RecurrentState]:
    """The same function as `recurrent_attention`, in Triton kernels.

    Moments are summed and factored in float64, tokens processed in float32. Every gradient is computed; the backward
    pass keeps the inputs alone and computes the moments again. A second derivative is refused.

    Args:
        arguments: a checked call with at least one token that `refusal` has no objection to.
        chunk_size: tokens a chunk of the exact causal read, at most 64, or None for the default.

    Returns:
        The output [B, T, H, P] in the dtype of value and the state after the last token of each sequence.
    """
    start = arguments.start()
    cuts = _cuts(arguments, start, chunk_size or DEFAULT_CHUNK_SIZE)
    query, key, value = (t.contiguous().flatten(0, 1) for t in (arguments.query, arguments.key, arguments.value))
    root = None if arguments.write_weight is None else _root(arguments.write_weight).flatten(0, 1)
    plain, filtered = _coefficients(arguments)
    initial = _stack(start.statistics)
    frozen = None if start.frozen_statistics is None else _stack(start.frozen_statistics)
    output, final, refrozen = KoopmanRead.apply(
        query,
        key,
        value,
        root,
        start.statistics.previous_key.float().contiguous(),
        plain,
        filtered,
        arguments.ridge.double().contiguous(),
        initial,
        frozen,
        cuts,
        arguments.power,
        not arguments.causal,
    )
    statistics = _advanced(start.statistics, final, key, root, cuts, cuts.lengths)
    if start.frozen_statistics is not None:
        assert arguments.refresh_interval is not None
        frozen_statistics = _refrozen(start, refrozen, key, root, cuts, arguments.refresh_interval)
    else:
        frozen_statistics = None
    position = start.position + cuts.lengths.to(start.position.device)
    return output.view(arguments.value.shape), RecurrentState(statistics, frozen_statistics, position)


def _cuts(arguments: Arguments, start: RecurrentState, chunk_size: int) -> Cuts:
    batch, time = arguments.query.shape[:2]
    bounds = arguments.cu_seqlens or [row * time for row in range(batch + 1)]
    group_size: int | None = min(chunk_size, time)
    offsets = [0] * arguments.num_sequences
    if not arguments.causal:
        group_size = None
    elif arguments.refresh_interval is not None:
        group_size = arguments.refresh_interval
        if arguments.initial_state is not None:
            offsets = (start.position % group_size).tolist()
    return Cuts.of(bounds, min(chunk_size, time), group_size, offsets, arguments.query.device)


def _root(write_weight: Tensor) -> Tensor:
    """The square root of the weight, float32; its gradient at 0 is defined as 0."""
    weight = write_weight.float()
    positive = weight > 0
    return torch.where(positive, torch.where(positive, weight, 1.0).sqrt(), 0.0).contiguous()


def _coefficients(arguments: Arguments) -> tuple[Tensor | None, Tensor]:
    """What p_0 and the unscaled p_K count in the output, float32, [T, H]; None for 0.

    The filter is linear in (gain A)^K, so gain, scale and blend act here alone, under ordinary autograd.
    """
    batch, time, heads, _ = arguments.query.shape
    filtered = arguments.scale * arguments.gain**arguments.power
    plain = None
    if arguments.blend is not None and arguments.power > 0:
        blend = arguments.blend.double()
        plain = (arguments.scale * (1 - blend)).float().flatten(0, 1).contiguous()
        filtered = filtered * blend
    return plain, filtered.expand(batch, time, heads).float().flatten(0, 1).contiguous()


def _stack(statistics: SufficientStatistics) -> Tensor:
    """The moments as the kernels hold them: [x; x_prev; u] x^T, float64, [N, H, 2 r + P, r]."""
    return torch.cat([statistics.gram, statistics.lag_moment.mT, statistics.value_moment], dim=-2).double()


def _advanced(
    initial: SufficientStatistics, moments: Tensor, key: Tensor, root: Tensor | None, cuts: Cuts, lengths: Tensor
) -> SufficientStatistics:
    """The statistics after the first lengths[n] tokens of each sequence, whose stacked `moments` are known."""

    def weighted(places: Tensor) -> Tensor:
        places = places.clamp(0, len(key) - 1).to(key.device)
        rows = key[places].float()
        return (rows if root is None else root[places].unsqueeze(-1) * rows).double()

    rank = key.shape[-1]
    taken = lengths.to(key.device)
    any_token = (taken > 0)[:, None, None]
    begins_here = any_token & (initial.count == 0)[:, None, None]
    gram, lag_moment, value_moment = moments.split([rank, rank, moments.shape[-2] - 2 * rank], dim=-2)
    return SufficientStatistics(
        gram=gram.contiguous(),
        lag_moment=lag_moment.mT.contiguous(),
        value_moment=value_moment.contiguous(),
        first_key=torch.where(begins_here, weighted(cuts.starts), initial.first_key),
        previous_key=torch.where(any_token, weighted(cuts.starts + lengths - 1), initial.previous_key),
        count=initial.count + taken,
    )


def _refrozen(
    start: RecurrentState, moments: Tensor, key: Tensor, root: Tensor | None, cuts: Cuts, interval: int
) -> SufficientStatistics:
    """What the next token of each sequence reads: the statistics at its last refresh, in this call or before it."""
    assert start.frozen_statistics is not None
    position = start.position.cpu()
    crossed = (position + cuts.lengths) // interval * interval - position  # tokens of this call before it
    at_refresh = _advanced(start.statistics, moments, key, root, cuts, crossed.clamp_min(0))
    return choose_rows((crossed > 0).to(key.device), at_refresh, start.frozen_statistics)
