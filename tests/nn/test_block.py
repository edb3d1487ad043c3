"""Stochastic depth of a block."""

from __future__ import annotations

import pytest
import torch

from echo_ska.nn import Block, Mamba2


def block(**settings):
    torch.manual_seed(0)
    return Block(16, Mamba2(16, state_size=4, head_dim=8), None, **settings)


def test_mixer_dropout_leaves_whole_rows_out_in_training_alone():
    dropping, plain = block(mixer_dropout=0.4), block()
    hidden = torch.randn(60, 7, 16)
    torch.manual_seed(1)
    found = dropping(hidden)[0]
    past = (found == hidden).flatten(1).all(dim=1)
    through = torch.isclose(found, plain(hidden)[0], atol=1e-6).flatten(1).all(dim=1)  # not scaled
    assert (past ^ through).all()
    assert 0.25 < past.float().mean() < 0.55
    assert torch.equal(dropping.eval()(hidden)[0], plain(hidden)[0])


def test_mixer_dropout_draws_for_each_sequence_of_a_packed_batch_as_for_rows():
    dropping = block(mixer_dropout=0.5)
    hidden, outputs = torch.randn(6, 5, 16), []
    for packed in (False, True):
        torch.manual_seed(3)
        if packed:
            outputs.append(dropping(hidden.flatten(0, 1)[None], cu_seqlens=torch.arange(0, 31, 5))[0].view(6, 5, 16))
        else:
            outputs.append(dropping(hidden)[0])
    assert torch.allclose(*outputs, atol=1e-5)
    assert (outputs[0] == hidden).flatten(1).all(dim=1).any()


def test_a_decoded_token_never_goes_past_the_mixer():
    dropping = block(mixer_dropout=0.999999)
    state = dropping.mixer.init_state(2)
    dropping.mixer.prepare(state)
    with torch.no_grad():
        hidden = torch.randn(2, 1, 16)
        assert not torch.equal(dropping(hidden, state, in_place=True)[0], hidden)


def test_what_is_left_out_gives_no_gradient():
    dropping = block(mixer_dropout=0.999999)
    dropping(torch.randn(3, 5, 16))[0].sum().backward()
    assert not any(parameter.grad.any() for parameter in dropping.mixer.parameters() if parameter.grad is not None)


def test_it_must_leave_something():
    with pytest.raises(ValueError, match="mixer_dropout must be at least 0 and below 1, got 1"):
        block(mixer_dropout=1.0)
