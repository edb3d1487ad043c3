"""Changes to a built network do what their names say, and nothing where there is nothing to change."""

from __future__ import annotations

import pickle

import pytest
import torch

from echo_ska.experiments.trials import changes
from echo_ska.experiments.trials.arms import small
from echo_ska.nn.aids import stretched_sigmoid
from echo_ska.nn.attention import rotated
from echo_ska.ops import spectral_koopman_attention


def written(change, mixer: str = "ska") -> torch.Tensor:
    """The write weights of random tokens after a change, [B, T, H]."""
    torch.manual_seed(0)
    network = small(mixer).build(128, 0).eval()
    change(network)
    (memory,) = changes.memories(network)
    hidden = torch.randn(4, 9, 64)
    if mixer == "ska":
        return memory.head_inputs(hidden)[0].write_weight
    return stretched_sigmoid(memory.gate_proj(hidden))


def test_every_second_head_is_gated():
    weights = written(changes.half_gated)
    assert torch.equal(weights[..., 0], torch.ones(4, 9))
    assert torch.equal(weights[..., 1], written(lambda network: None)[..., 1])


@pytest.mark.parametrize("mixer", ["ska", "delta_net"])
def test_a_gate_that_starts_open_writes_nearly_all(mixer):
    assert written(changes.gate_starts_open, mixer).mean().item() == pytest.approx(0.9, abs=0.06)


@torch.no_grad()
def test_every_second_head_is_hebbian():
    network = small("ska", power=0).build(128, 0).eval()
    changes.half_hebbian(network)
    (ska,) = changes.ska_layers(network)
    tokens, _ = ska.head_inputs(torch.randn(1, 9, 64))
    settings = {"ridge": ska.ridge, "power": 0, "scale": ska.scale}
    read, _ = spectral_koopman_attention(tokens.query, tokens.key, tokens.value, tokens.write_weight, **settings)
    matches = torch.einsum("bthr,bshr->bhts", tokens.query, tokens.key).tril()
    written = tokens.write_weight.unsqueeze(-1) * tokens.value
    summed = torch.einsum("bhts,bshp->bthp", matches, written)
    apart = (read - summed).norm(dim=(1, 3)) / summed.norm(dim=(1, 3))
    assert apart[0, 1] < 2e-3  # as 9 tokens are to a ridge of 1e4
    assert apart[0, 0] > 0.1


@pytest.mark.parametrize("mixer", ["ska", "delta_net"])
def test_gate_dropout_is_the_layers_own(mixer):
    network = small(mixer).build(128, 0)
    changes.gate_dropout(network)
    (memory,) = changes.memories(network)
    assert memory.gate_dropout == 0.2


def test_a_changed_gate_travels_to_other_processes():
    network = small("ska").build(128, 0)
    changes.half_gated(network)
    (again,) = changes.ska_layers(pickle.loads(pickle.dumps(network)))
    assert torch.equal(again._write_weight(torch.randn(1, 3, 64), torch.float32)[..., 0], torch.ones(1, 3))


@pytest.mark.parametrize(("heads", "spans"), [(1, [1000]), (2, [1000, 10]), (4, [1000, 215.4435, 46.4159, 10])])
@pytest.mark.parametrize("mixer", ["gated_delta_net", "mesa_net"])
def test_decays_that_are_spread_are_no_longer_drawn(mixer, heads, spans):
    network = small(mixer, num_heads=heads).build(128, 0)
    mamba, before = network.model.layers[0].mixer, network.model.layers[0].mixer.A_log.clone()
    changes.spread_decays(network)
    decay = network.model.layers[1].mixer.decay
    decay.proj.weight.data.zero_()
    found = -1 / decay(torch.randn(5, 64))
    torch.testing.assert_close(found[..., 0], torch.tensor(spans).float().expand(5, -1))
    assert torch.equal(mamba.A_log, before)


@torch.no_grad()
def test_mamba_with_the_aids_reads_what_stood_after_the_same_token():
    """Of tokens 3 5 3, the query at the last is the key that was written with 5."""
    network = small("mamba2").build(128, 0)
    changes.even_mamba_aids(network)
    layer = network.model.layers[0].mixer
    hidden = network.model.embed_tokens(torch.tensor([[3, 5, 3]]))
    projected = layer.in_proj(hidden)[..., layer.inner_size : -layer.heads]
    mixed, _ = layer.convolution(projected)
    x, keys, queries = mixed.split([layer.inner_size, layer.state_size, layer.state_size], dim=-1)
    torch.testing.assert_close(x, projected[..., : layer.inner_size])
    torch.testing.assert_close(queries[:, 2], keys[:, 1])
    assert not torch.allclose(queries[:, 1], keys[:, 1])
    step = layer.dt_bias.exp().log1p()
    torch.testing.assert_close(step * layer.A_log.exp(), torch.tensor([1e-3, 0.1]))
    torch.testing.assert_close(step, torch.full((2,), 0.1))


def test_attention_without_positions_does_not_see_how_far_a_token_is():
    layer = small("full_attention").build(128, 0).model.layers[1].mixer.eval()
    hidden = torch.randn(1, 9, 64)
    network = small("full_attention").build(128, 0).eval()
    changes.no_positions(network)
    (free,) = [block.mixer for block in network.model.layers if hasattr(block.mixer, "rope_theta")]
    # Kept from the start, another token's key is read alike by the last query, however many are in between.
    filler = torch.zeros(1, 50, 64)

    def read(mixer, between):
        tokens = torch.cat([hidden[:, :4], between, hidden[:, 4:]], dim=1)
        query, key, _, _ = mixer.qkv(tokens)
        places = torch.arange(tokens.shape[1])[None]
        query, key = (rotated(vectors, places, mixer.rope_theta) for vectors in (query, key))
        return (query[:, -1] * key[:, 3]).sum(-1)

    torch.testing.assert_close(read(free, filler), read(free, filler[:, :0]))
    assert not torch.allclose(read(layer, filler), read(layer, filler[:, :0]), atol=1e-2)


def test_what_has_no_memory_cannot_be_changed():
    with pytest.raises(ValueError, match="no softmax attention"):
        changes.no_positions(small("ska").build(128, 0))
    for change, mixer in ((changes.spread_decays, "gla"), (changes.even_mamba_aids, "ska")):
        fields = {"layer_types": [mixer] * 3, "ska_at_ends": True}
        with pytest.raises(ValueError, match="has no"):
            change(small(mixer, **fields).build(128, 0))
    with pytest.raises(ValueError, match="no SKA layer"):
        changes.half_gated(small("full_attention").build(128, 0))
    with pytest.raises(ValueError, match="none of its peers"):
        changes.gate_starts_open(small("full_attention").build(128, 0))
