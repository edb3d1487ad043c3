"""Linear attention's feature map and normalisation, against attention written out with all pairs of tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from textbook import random_tokens

from echo_ska.nn.peers import LinearAttention


def mixer_of(**settings):
    torch.manual_seed(0)
    return LinearAttention(32, num_heads=2, rank=8, head_dim=6, **settings).double()


@pytest.mark.parametrize(
    ("feature_map", "normalised"), [("identity", False), ("elu+1", False), ("elu+1", True)], ids=str
)
def test_it_is_attention_with_the_kernel_of_the_feature_map(feature_map, normalised):
    mixer = mixer_of(feature_map=feature_map, normalised=normalised, chunk_size=16)
    query, key, value = random_tokens(LinearAttention)
    weight = torch.rand(2, 50, 2, 1, dtype=torch.float64)
    empty = torch.zeros(2, *mixer.memory_shape, dtype=torch.float64)
    found, _ = mixer.scan(empty, *mixer.tokens(value, query, key, value, weight))
    phi = (lambda x: F.elu(x) + 1) if feature_map == "elu+1" else lambda x: x
    scores = torch.einsum("nthr,nshr->nhts", phi(query), phi(key)).tril() * weight[..., 0].permute(0, 2, 1)[:, :, None]
    if normalised:
        scores = scores / scores.sum(-1, keepdim=True)
    assert torch.allclose(found, torch.einsum("nhts,nshp->nthp", scores, value), atol=1e-9)


def test_where_nothing_was_written_nothing_is_read():
    mixer = mixer_of(feature_map="elu+1", normalised=True)
    query, key, value = random_tokens(LinearAttention, length=5)
    tokens = mixer.tokens(value, query, key, value, torch.zeros(2, 5, 2, 1, dtype=torch.float64))
    read, _ = mixer.scan(torch.zeros(2, 2, 7, 8, dtype=torch.float64), *tokens)
    assert torch.equal(read, torch.zeros_like(read))


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match='feature_map must be "identity" or "elu\\+1", got \'relu\''):
        mixer_of(feature_map="relu")
    with pytest.raises(ValueError, match="has to be positive"):
        mixer_of(normalised=True)


@pytest.mark.parametrize("normalised", [False, True])
def test_it_is_flas(normalised):
    naive = pytest.importorskip("fla.ops.linear_attn.naive", exc_type=ImportError)
    mixer = mixer_of(feature_map="elu+1", normalised=normalised)
    query, key, value = random_tokens(LinearAttention)
    tokens = mixer.tokens(value, query, key, value, None)
    found, _ = mixer.scan(torch.zeros(2, *mixer.memory_shape, dtype=torch.float64), *tokens)
    expected, _ = naive.naive_recurrent_linear_attn(
        tokens[0].float(), tokens[1].float(), value.float(), scale=1.0, normalize=normalised
    )
    assert torch.allclose(found.float(), expected, atol=1e-4)
