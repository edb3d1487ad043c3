"""SKA behind other packages' signatures is SKA: padding, caches, states counted."""

from __future__ import annotations

import pytest
import torch

from echo_ska.nn import SpectralKoopmanAttention
from echo_ska.nn.adapters import FlaSpectralKoopmanAttention, ZoologySpectralKoopmanAttention

HIDDEN = 32


def fla_layer(**settings):
    torch.manual_seed(0)
    return FlaSpectralKoopmanAttention(HIDDEN, num_heads=2, rank=8, **settings).eval()


class ListCache(list):
    """The part of flash-linear-attention's cache protocol that a layer uses, as their layers use it."""

    tokens = 0

    def update(self, *, recurrent_state, layer_idx, offset):
        self.extend([None] * (layer_idx + 1 - len(self)))
        self[layer_idx] = {"recurrent_state": recurrent_state}
        self.tokens += offset


def caches():
    """Theirs too, where it is installed."""
    found = [ListCache]
    try:
        from fla.models.utils import Cache
    except ImportError:
        return found
    return [*found, Cache]


@torch.no_grad()
@pytest.mark.parametrize("cache", caches(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("split", [1, 7, 20])
def test_a_cache_carries_the_state_over(cache, split):
    layer, hidden = fla_layer(layer_idx=0), torch.randn(2, 21, HIDDEN)
    whole, nothing, none = layer(hidden)
    assert nothing is none is None
    past = cache()
    first, _, past = layer(hidden[:, :split], past_key_values=past, use_cache=True)
    second, _, past = layer(hidden[:, split:], past_key_values=past, use_cache=True)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_padding_changes_nothing_on_either_side_and_in_later_calls():
    layer = fla_layer(layer_idx=2)
    short, long = torch.randn(1, 5, HIDDEN), torch.randn(1, 9, HIDDEN)
    alone = [layer(tokens)[0] for tokens in (short, long)]
    padding = torch.full((1, 4, HIDDEN), 100.0)
    for left in (True, False):
        padded = torch.cat([padding, short] if left else [short, padding], dim=1)
        mask = torch.ones(2, 9)
        mask[0, slice(0, 4) if left else slice(5, 9)] = 0
        batch = torch.cat([padded, long])
        found, _, _ = layer(batch, attention_mask=mask)
        torch.testing.assert_close(found[0][mask[0].bool()], alone[0][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[1:], alone[1], rtol=1e-5, atol=1e-6)
        assert (found[0][~mask[0].bool()] == 0).all()
    past = ListCache()
    mask[0] = torch.tensor([0] * 4 + [1] * 5)
    batch = torch.cat([torch.cat([padding, short], dim=1), long])
    parts = [
        layer(batch[:, begin:end], attention_mask=mask[:, :end], past_key_values=past, use_cache=True)[0]
        for begin, end in ((0, 3), (3, 8), (8, 9))
    ]
    found = torch.cat(parts, dim=1)
    torch.testing.assert_close(found[0, 4:], alone[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1:], alone[1], rtol=1e-5, atol=1e-6)
    assert past.tokens == 9


def test_what_does_not_fit_is_refused():
    hidden = torch.randn(2, 6, HIDDEN)
    with pytest.raises(ValueError, match="give layer_idx"):
        fla_layer()(hidden, past_key_values=ListCache(), use_cache=True)
    with pytest.raises(ValueError, match=r"attention_mask must be \[2, 6\]"):
        fla_layer()(hidden, attention_mask=torch.ones(2, 6, 6))
    mask = torch.tensor([[0, 1, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match="not both"):
        fla_layer()(hidden[:1], attention_mask=mask, cu_seqlens=torch.tensor([0, 6]))


def test_zoology_mixes_with_the_same_layer_and_counts_the_state():
    torch.manual_seed(0)
    mixer = ZoologySpectralKoopmanAttention(d_model=HIDDEN, num_heads=2, rank=8, layer_idx=1)
    twin = SpectralKoopmanAttention(HIDDEN, num_heads=2, rank=8)
    twin.load_state_dict(mixer.mixer.state_dict())
    hidden = torch.randn(2, 12, HIDDEN)
    assert torch.equal(mixer(hidden), twin(hidden)[0])
    # Of each head 2 r^2 + P r sums and two keys; and the counts of tokens read.
    assert mixer.state_size(sequence_length=64) == 2 * (2 * 8 * 8 + 16 * 8 + 2 * 8) + 2
    assert mixer.state_size() == mixer.state_size(sequence_length=64)
