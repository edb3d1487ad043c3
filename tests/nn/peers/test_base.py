"""Every peer is its paper's recurrence: by chunks, by steps, in float32, and as a whole layer."""

from __future__ import annotations

import pytest
import torch
from textbook import RECURRENCES, layer, random_tokens, textbook

from echo_ska.nn import SpectralKoopmanAttention
from echo_ska.nn.peers import DeltaNet, LinearAttention

KINDS = pytest.mark.parametrize("kind", RECURRENCES, ids=lambda kind: kind.__name__)


def mixer_of(kind, **settings):
    torch.manual_seed(0)
    return kind(32, **({"num_heads": 2, "rank": 8, "head_dim": 6} | settings))


@KINDS
@pytest.mark.parametrize("hard", [False, True], ids=["usual", "hard"])
@pytest.mark.parametrize(("length", "chunk_size"), [(1, 32), (50, 16), (64, 32), (70, 1)])
def test_chunks_are_the_textbook_recurrence(kind, hard, length, chunk_size):
    mixer = mixer_of(kind, chunk_size=chunk_size)
    tokens = [x.requires_grad_() for x in random_tokens(kind, length=length, hard=hard)]
    memory = torch.randn(2, 2, 6, 8, dtype=torch.float64, requires_grad=True)
    results = [mixer.scan(memory, *tokens), textbook(kind, memory, tokens)]
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, atol=1e-9)
    losses = [read.sin().sum() + final.cos().sum() for read, final in results]
    gradients = [torch.autograd.grad(loss, [memory, *tokens]) for loss in losses]
    for found, expected in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, atol=1e-9)


@KINDS
def test_a_step_is_the_textbook_recurrence(kind):
    mixer, tokens = mixer_of(kind), random_tokens(kind, length=9)
    memory = torch.randn(2, 2, 6, 8, dtype=torch.float64)
    expected, last = textbook(kind, memory, tokens)
    for t in range(9):
        found = mixer.recur(memory, *(tensor[:, t] for tensor in tokens))
        assert torch.allclose(found, expected[:, t], atol=1e-12)
    assert torch.allclose(memory, last, atol=1e-12)


@KINDS
def test_a_token_of_zeros_changes_nothing(kind):
    """What sequences of unequal length are filled up with."""
    mixer, tokens = mixer_of(kind), random_tokens(kind, length=5)
    memory = torch.randn(2, 2, 6, 8, dtype=torch.float64)
    _, expected = mixer.scan(memory, *tokens)
    _, found = mixer.scan(memory, *(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 3)) for x in tokens))
    assert torch.allclose(found, expected, atol=1e-14)


@KINDS
@pytest.mark.parametrize("length", [64, 4096])
@pytest.mark.parametrize("hard", [False, True], ids=["usual", "hard"])
def test_float32_is_near_float64(kind, length, hard):
    """Four keys again and again, all fully written, and decays down to the strongest that are allowed."""
    mixer = mixer_of(kind)
    tokens = random_tokens(kind, rows=1, length=length, rank=32, width=32, hard=hard)
    memory = torch.zeros(1, 2, 32, 32, dtype=torch.float64)
    expected, last = textbook(kind, memory, tokens)
    found, final = mixer.scan(memory.float(), *(tensor.float() for tensor in tokens))
    assert found.dtype is final.dtype is torch.float32
    assert (found - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
    assert (final - last).abs().max() < 1e-4 * max(1, last.abs().max())


@KINDS
def test_float32_gradients_are_near_float64s(kind):
    mixer, tokens = mixer_of(kind), random_tokens(kind, length=256, rank=32, width=32, hard=True)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in tokens]
        read, final = mixer.scan(torch.zeros(2, 2, 32, 32, dtype=dtype), *leaves)
        gradients.append(torch.autograd.grad(read.square().sum() + final.square().sum(), leaves))
    for expected, found in zip(*gradients, strict=True):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@KINDS
def test_the_whole_layer_is_written_out_again(kind):
    mixer = mixer_of(kind).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    hidden = torch.randn(2, 40, 32, dtype=torch.float64, requires_grad=True)
    found, expected = mixer(hidden)[0], layer(mixer, hidden)
    assert torch.allclose(found, expected, atol=1e-9)
    inputs = [hidden, *mixer.parameters()]
    gradients = [torch.autograd.grad(read.sin().sum(), inputs) for read in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)


@KINDS
def test_peers_have_the_aids_of_ska(kind):
    peer, ska = mixer_of(kind), SpectralKoopmanAttention(32, num_heads=2, rank=8, head_dim=6)
    ours, theirs = dict(peer.named_parameters()), dict(ska.named_parameters())
    aids = [name for name in theirs if name.split(".")[0] in ("qkv", "gate_proj", "norm", "o_proj")]
    assert {name: theirs[name].shape for name in aids} == {name: ours[name].shape for name in aids}
    assert torch.equal(ours["qkv.q_proj.weight"], ours["qkv.k_proj.weight"])
    assert torch.equal(ours["qkv.convolution.weight"], theirs["qkv.convolution.weight"])
    assert torch.equal(ours["gate_proj.bias"], theirs["gate_proj.bias"])
    bare = mixer_of(kind, conv_kernel=None, write_gate=False, output_norm=False)
    assert bare.qkv.convolution is bare.gate_proj is bare.norm is None
    assert torch.equal(bare.scale, torch.ones(2))


@pytest.mark.parametrize("start", [0.1, 0.9])
def test_the_gate_starts_where_it_is_told(start):
    mixer = mixer_of(DeltaNet, initial_gate=start).double()
    mixer.gate_proj.weight.data.zero_()
    query = torch.ones(1, 3, 2, 8, dtype=torch.float64)
    strength = mixer._tokens(torch.randn(1, 3, 32, dtype=torch.float64), query, query, query[..., :6])[3]
    assert torch.allclose(strength, torch.full_like(strength, start), atol=1e-6)


@KINDS
def test_gate_dropout_opens_the_gate_of_every_peer_in_training_alone(kind):
    mixer = mixer_of(kind, gate_dropout=0.999999)
    mixer.gate_proj.bias.data.fill_(-20.0)  # closed
    hidden = torch.randn(2, 7, 32)
    closed, state = mixer.eval()(hidden, output_state=True)
    assert not state.memory.any()
    opened, state = mixer.train()(hidden, output_state=True)
    assert state.memory.any()
    assert not torch.equal(opened, closed)
    packed = mixer(hidden.flatten(0, 1)[None], cu_seqlens=torch.tensor([0, 7, 14]))[0].view(2, 7, 32)
    assert torch.allclose(packed, opened, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate_dropout": -0.1}, "gate_dropout must be at least 0 and below 1, got -0.1"),
        ({"initial_gate": 1.0}, "initial_gate must be between 0 and 1, got 1.0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"num_heads": 3, "head_dim": None}, "hidden_size 32 is no multiple of num_heads 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        mixer_of(LinearAttention, **settings)
