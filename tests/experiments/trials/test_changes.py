"""Changes to a built network do what their names say, and nothing where there is nothing to change."""

from __future__ import annotations

import pickle

import pytest
import torch

from echo_ska.experiments.trials import changes
from echo_ska.experiments.trials.arms import small
from echo_ska.nn.aids import stretched_sigmoid
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


def test_what_has_no_memory_cannot_be_changed():
    with pytest.raises(ValueError, match="no SKA layer"):
        changes.half_gated(small("full_attention").build(128, 0))
    with pytest.raises(ValueError, match="none of its peers"):
        changes.gate_starts_open(small("full_attention").build(128, 0))
