"""Reading a long context by several processes: the states after it, as one process has them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from echo_ska.models import EchoCache, EchoForCausalLM
from echo_ska.models.eval_mode import in_eval_mode
from echo_ska.models.segments import SEGMENT_LENGTH
from echo_ska.parallel.context import ContextParallel, whole_sequences
from echo_ska.parallel.traffic import Traffic


@torch.no_grad()
def read_context_parallel(
    model: EchoForCausalLM,
    input_ids: Tensor,
    past_key_values: EchoCache | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    segment_length: int = SEGMENT_LENGTH,
    traffic: Traffic | None = None,
) -> CausalLMOutputWithPast:
    """Read a context of any length by all processes of a group: `EchoForCausalLM.prefill` in a share of the time.

    The processes take neighbouring segments, find the states before theirs by one scan a layer, and go on from the
    states after the last one. A few tokens at the end, and up to the next multiple of a `refresh_interval`, every
    process reads by itself. The model is in eval mode meanwhile.

    Args:
        model: the same in every process.
        input_ids: [B, T] int64, T >= 1, all of it in every process.
        past_key_values: what to go on from, the same in every process; updated in place.
        group: of `torch.distributed`; None for all processes.
        segment_length: tokens of a row that a process reads at once, at least 1: what its memory grows with.
        traffic: adds what this process sends.

    Returns:
        `logits` [B, 1, V] of the last token and `past_key_values`, in every process.

    Raises:
        ValueError: no token, a cache that records what it reads, or what `ContextParallel` refuses.
    """
    if input_ids.dim() != 2 or input_ids.shape[1] < 1:
        raise ValueError(f"input_ids must be [batch, time] of at least one token, got {list(input_ids.shape)}")
    if segment_length < 1:
        raise ValueError(f"segment_length must be at least 1, got {segment_length}")
    cache = EchoCache(model.config) if past_key_values is None else past_key_values
    if cache.recorder() is not None:
        raise ValueError(
            "past_key_values records what it reads, which is not split over processes: read into a new one"
        )
    with in_eval_mode(model), ContextParallel(model, group) as parallel, cache.restored_on_error():
        if traffic is not None:
            parallel.line.traffic = traffic
        grain, world = parallel.multiple_of, parallel.line.world
        place, length, output = 0, input_ids.shape[1], None
        while place < length:
            alone = min(-cache.get_seq_length() % grain, length - place)
            if not alone:
                part = min(max(segment_length // grain, 1) * grain, (length - place) // world // grain * grain)
                if part >= parallel.least_tokens:
                    output = _read_parts(parallel, input_ids[:, place : place + world * part], cache)
                    place += world * part
                    continue
                alone = length - place
            with whole_sequences(parallel.mixers):
                output = model.prefill(input_ids[:, place : place + alone], cache, segment_length=segment_length)
            place += alone
    assert output is not None
    return output


def _read_parts(parallel: ContextParallel, input_ids: Tensor, cache: EchoCache) -> CausalLMOutputWithPast:
    """One part in each process, [B, world * part]; then all have the last one's states and logits."""
    line, part = parallel.line, input_ids.shape[1] // parallel.line.world
    begin = line.rank * part
    output = parallel.model(
        input_ids=input_ids[:, begin : begin + part],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
    )
    for layer in cache.layers:
        assert layer.state is not None
        state = layer.state.map(lambda tensor: line.broadcast_last_(tensor.contiguous(), "state"))
        layer.store(state, input_ids.shape[1] - part)
    output.logits = line.broadcast_last_(output.logits.contiguous(), "logits")
    return output
