"""What is carried over from attention to SKA."""

from __future__ import annotations

import pytest
import torch
from host_models import HOSTS, host

from echo_ska.convert.carry import build_mixer, carry_over, low_rank_forms
from echo_ska.convert.hosts import decoder_layers, head_weights


def forms(query, key):
    return torch.einsum("hcd,hce->hde", query, key)


def test_forms_of_full_rank_are_the_same():
    query, key = torch.randn(2, 3, 5, 11, dtype=torch.float64)
    found = low_rank_forms(query, key, 5)
    assert torch.allclose(forms(*found), forms(query, key), atol=1e-12)


def test_forms_of_lower_rank_are_the_best():
    query, key = torch.randn(2, 3, 5, 11, dtype=torch.float64)
    wanted = forms(query, key)
    sizes = torch.linalg.svdvals(wanted)  # [H, 11], of which 5 are not 0
    for rank in (1, 2, 4):
        narrow_query, narrow_key = low_rank_forms(query, key, rank)
        assert narrow_query.shape == narrow_key.shape == (3, rank, 11)
        error = (forms(narrow_query, narrow_key) - wanted).square().sum(dim=(1, 2))
        assert torch.allclose(error, sizes[:, rank:].square().sum(dim=1))  # Eckart and Young
        assert torch.allclose(narrow_query @ narrow_query.mT, narrow_key @ narrow_key.mT)  # the sides share alike


@pytest.mark.parametrize("rank", [3, 4, 6, 9])
def test_forms_of_heads_wider_than_their_input_are_the_same_from_its_width_on(rank):
    query, key = torch.randn(2, 3, 9, 4, dtype=torch.float64)
    narrow_query, narrow_key = low_rank_forms(query, key, rank)
    assert narrow_query.shape == narrow_key.shape == (3, rank, 4)
    error = (forms(narrow_query, narrow_key) - forms(query, key)).square().sum(dim=(1, 2))
    lost = torch.linalg.svdvals(forms(query, key))[:, rank:].square().sum(dim=1)
    assert torch.allclose(error, lost, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 6])
def test_ranks_out_of_range_are_refused(rank):
    with pytest.raises(ValueError, match=f"between 1 and the head's width 5 to carry it over, got {rank}"):
        low_rank_forms(torch.ones(1, 5, 7), torch.ones(1, 5, 7), rank)


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_products_values_and_output_are_those_of_the_attention(name):
    blocks, attribute = decoder_layers(host(name))
    weights = head_weights(getattr(blocks[0], attribute))
    mixer = build_mixer(weights, weights.query.shape[1], {"key_delay": 0})
    before = [parameter.clone() for parameter in mixer.parameters()]
    carried = carry_over(weights, mixer)
    hidden = torch.randn(2, 9, 32)
    query, key, value, _ = mixer.qkv(hidden)

    def heads(weight, bias):
        return torch.einsum("btd,hcd->bthc", hidden, weight) + (0 if bias is None else bias)

    wanted_query, wanted_key = heads(weights.query, weights.query_bias), heads(weights.key, weights.key_bias)
    assert torch.allclose(
        torch.einsum("bthc,bshc->bhts", query, key),
        torch.einsum("bthc,bshc->bhts", wanted_query, wanted_key),
        atol=1e-3,
        rtol=1e-4,
    )
    assert torch.allclose(value, heads(weights.value, weights.value_bias), atol=1e-5)
    assert torch.equal(mixer.o_proj.weight, weights.output)
    changed = sum(new.numel() for old, new in zip(before, mixer.parameters(), strict=True) if not torch.equal(old, new))
    assert carried == changed


def test_a_layer_without_a_state_is_refused():
    blocks, attribute = decoder_layers(host("llama"))
    with pytest.raises(ValueError, match="go on from a state"):
        build_mixer(head_weights(getattr(blocks[0], attribute)), 8, {"causal": False})
