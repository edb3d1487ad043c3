"""Bits per byte by context: the same bytes at every length, each predicted from its window alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from echo_ska.evaluation import context_length
from echo_ska.evaluation.context_length import bits_by_context, block_starts
from echo_ska.models import EchoConfig, EchoForCausalLM

TEXT = torch.randint(256, (200,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_blocks_are_spread_and_do_not_overlap():
    assert block_starts(200, 64, 2) == [32, 168]
    assert block_starts(64, 64, 5) == [32]
    starts = block_starts(1000, 64, 1000)
    assert len(starts) == (1000 - 32) // 32
    assert all(b - a >= 32 for a, b in itertools.pairwise(starts))
    assert starts[-1] + 32 <= 1000
    for length, blocks in ((63, 1), (64, 0)):
        with pytest.raises(ValueError, match="at least the longest context"):
            block_starts(length, 64, blocks)


@pytest.mark.parametrize("at_once", [1, 24, 16_384])
@pytest.mark.parametrize("layers", [["mamba2", "ska", "mamba2"], ["full_attention"] * 3])
def test_every_byte_is_scored_from_its_own_window(layers, at_once, monkeypatch):
    monkeypatch.setattr(context_length, "BYTES_AT_ONCE", at_once)
    torch.manual_seed(0)
    config = EchoConfig(hidden_size=16, num_hidden_layers=3, layer_types=layers, num_heads=2, rank=4, state_size=4)
    model = EchoForCausalLM(config).train()
    seen = []
    found = bits_by_context(model, [TEXT, TEXT[:70]], (8, 32), 2, progress=lambda *done: seen.append(done))
    assert model.training
    model.eval()
    for context, half in ((8, 4), (32, 16)):
        bits = []
        for text in (TEXT, TEXT[:70]):
            for begin in block_starts(len(text), 32, 2):
                for byte in range(begin, begin + 16):
                    first = byte - half - (byte - begin) % half  # of the window
                    with torch.no_grad():
                        logits = model(text[first:byte].long()[None], use_cache=False).logits[0, -1]
                    bits.append(-F.log_softmax(logits, -1)[int(text[byte])].item() / math.log(2))
        assert found[context] == pytest.approx(sum(bits) / len(bits), abs=1e-4)
    assert seen[-1] == (2 * 2 * 64, 2 * 2 * 64)


def test_what_is_refused():
    model = nn.Linear(1, 1)
    for texts, contexts in (([], (8,)), ([TEXT], ()), ([TEXT], (8, 12)), ([TEXT], (7,)), ([TEXT], (0, 8))):
        with pytest.raises(ValueError, match="contexts that are even and divide the longest"):
            bits_by_context(model, texts, contexts, 1)
    with pytest.raises(ValueError, match="at least the longest context"):
        bits_by_context(model, [TEXT], (256,), 1)
