"""Every peer of SKA, as the configuration's `layer_types` name it, in a model."""

from __future__ import annotations

import pytest
import torch

from echo_ska.memory import ContextState
from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.nn.registry import PEERS


@pytest.fixture(params=PEERS)
def kind(request):
    return request.param


def model_of(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_heads": 2, "rank": 8, "state_size": 8, "sliding_window": 16}
    return EchoForCausalLM(EchoConfig(**sizes, num_hidden_layers=2, layer_types=["mamba2", kind]))


def test_it_learns_and_decodes_what_it_has_learnt(kind):
    model = model_of(kind)
    tokens = torch.randint(1, 40, (4, 1), generator=torch.Generator().manual_seed(0)) + torch.arange(24)
    tokens = tokens % 39 + 1  # every token says the next one
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(30):
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
    assert float(loss.detach()) < 0.2
    found = model.eval().generate(tokens[:, :6], max_new_tokens=12, do_sample=False)
    assert float((found == tokens[:, :18]).float().mean()) > 0.95


def test_its_state_is_counted_by_its_name_and_does_not_grow(kind):
    model = model_of(kind).eval()
    sizes = []
    for length in (20, 60):
        cache = model(torch.ones(1, length, dtype=torch.int64), use_cache=True).past_key_values
        assert set(cache.bytes_by_kind()) == {"mamba2", kind}
        sizes.append(cache.bytes_by_kind()[kind])
        assert cache.nbytes == model.state_bytes(length) == model.state_bytes(1_000_000)
    assert sizes[0] == sizes[1] > 0


def test_a_context_of_it_is_saved_and_goes_on_bit_for_bit(kind, tmp_path):
    model = model_of(kind).eval()
    context = ContextState.read(model, torch.arange(1, 30))
    loaded = ContextState.load(context.save(tmp_path / "context"), model)
    assert torch.equal(loaded.logits(model), context.logits(model))
    assert torch.equal(loaded.generate(model, max_new_tokens=8), context.generate(model, max_new_tokens=8))
