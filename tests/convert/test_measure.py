"""What is measured before and after: each against what it says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from host_models import host, tokens

from echo_ska.convert.measure import copying, evenly_spaced, held_out_loss


@torch.no_grad()
def test_held_out_loss_is_the_mean_over_scored_tokens():
    model, text = host("llama"), tokens(1, 60)[0]
    windows = torch.stack([text[:20], text[20:40], text[40:]])
    wanted = model(windows, labels=windows).loss.item()
    assert held_out_loss(model, text, 20, batch_size=2) == pytest.approx(wanted, rel=1e-5)


class Copier(torch.nn.Module):
    """Predicts the token `distance` - 1 places back, which is the next one of a copy at that distance."""

    def __init__(self, distance):
        super().__init__()
        self.distance, self.weight = distance, torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=F.one_hot(input_ids.roll(self.distance - 1, dims=1), 50).float())


def test_copying_is_perfect_for_who_copies_and_chance_for_who_does_not():
    assert copying(Copier(10), 50, 10) == 1
    assert copying(Copier(9), 50, 10, windows=300) == pytest.approx(1 / 50, abs=0.01)


def test_windows_cover_a_text_evenly():
    text = torch.arange(100)
    assert evenly_spaced(text, 10, 4)[:, 0].tolist() == [0, 30, 60, 90]
    assert len(evenly_spaced(text, 30, 99)) == 3
    with pytest.raises(ValueError, match="need windows of at least 4 tokens"):
        evenly_spaced(text, 101, 1)


def test_windows_stay_inside_a_text_longer_than_float32_counts():
    text = torch.zeros(1, dtype=torch.uint8).expand(2**24 + 259)  # without its memory
    assert evenly_spaced(text, 256, 64).shape == (64, 256)
    assert evenly_spaced(text, 256, 1).shape == (1, 256)
