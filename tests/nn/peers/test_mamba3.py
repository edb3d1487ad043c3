"""Mamba-3 against its complex recurrence, token by token, where nothing is turned beforehand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peer_layers import assert_same_function, rms, stirred

from echo_ska.nn.peers import Mamba3
from echo_ska.nn.peers.mamba3 import mamba3_as_published


def as_pairs(vectors, angles):
    """[..., N] as N - angles complex channels: (i, i + angles) are a pair, the rest is real."""
    left, right, rest = vectors.split([angles, angles, vectors.shape[-1] - 2 * angles], dim=-1)
    return torch.cat([torch.complex(left, right), torch.complex(rest, torch.zeros_like(rest))], dim=-1)


def definition(layer, hidden):
    """h_t = a_t (h_{t-1} + (1 - l_t) dt_t x_{t-1} b_{t-1}) + l_t dt_t x_t b_t, with a_t complex; y_t = Re(h_t c_t*)."""
    C, B, x, _ = layer.qkv(hidden)
    z, dt, rate, trapezoid, angle = layer.in_proj(hidden).split(layer.sizes, dim=-1)
    C = rms(C.squeeze(2), layer.C_norm)[:, :, None] + layer.C_bias
    B = rms(B.squeeze(2), layer.B_norm)[:, :, None] + layer.B_bias
    C, B = as_pairs(C, layer.angles), as_pairs(B, layer.angles)  # [B, T, H, channels]
    x = x.squeeze(2).unflatten(-1, (layer.heads, layer.head_dim))
    dt = torch.log1p(torch.exp(dt + layer.dt_bias))
    weight = torch.sigmoid(trapezoid)
    rate = -torch.log1p(torch.exp(rate)).clamp_min(1e-4)
    still = C.shape[-1] - layer.angles
    turn = F.pad(torch.pi * torch.tanh(angle), (0, still))[:, :, None] * dt[..., None]
    decay = torch.exp(torch.complex((rate * dt)[..., None].expand_as(turn), -turn))
    pair = x[..., None] * B[..., None, :]  # [B, T, H, P, channels]
    memory, last, reads = torch.zeros_like(pair[:, 0]), torch.zeros_like(pair[:, 0]), []
    for t in range(hidden.shape[1]):
        step, share = dt[:, t, :, None, None], weight[:, t, :, None, None]
        memory = decay[:, t, :, None] * (memory + (1 - share) * step * last) + share * step * pair[:, t]
        last = pair[:, t]
        reads.append((memory * C[:, t, :, None].conj()).sum(-1).real)
    y = torch.stack(reads, dim=1) + layer.D[:, None] * x
    if layer.norm is not None:
        y = rms(y, layer.norm)
    return (y.flatten(2) * z * torch.sigmoid(z)) @ layer.out_proj.weight.mT


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chunk_size": 7, "rotary_fraction": 1.0},
        {"conv_kernel": None, "tied_start": False, "output_norm": False, "chunk_size": 1},
    ],
    ids=str,
)
def test_it_is_its_recurrence(settings):
    layer = stirred(Mamba3(16, state_size=8, head_dim=8, **settings))
    assert_same_function(layer, definition, torch.randn(2, 45, 16, dtype=torch.float64))


def test_the_paper_starts_without_aids():
    torch.manual_seed(0)
    paper, ours = mamba3_as_published(16, state_size=8, head_dim=8), Mamba3(16, state_size=8, head_dim=8)
    assert paper.qkv.convolution is None
    assert paper.norm is None
    assert not torch.equal(paper.qkv.q_proj.weight, paper.qkv.k_proj.weight)
    assert torch.equal(ours.qkv.q_proj.weight, ours.qkv.k_proj.weight)
    assert bool((ours.B_bias == 1).all())


def test_a_turning_state_counts_modulo_two():
    """Parity, which no real positive decay can hold: half a turn for every token that says 1."""
    layer = Mamba3(4, state_size=4, head_dim=4, expand=1, conv_kernel=None, rotary_fraction=1.0, output_norm=False)
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.dt_bias.fill_(1.0 + torch.log(-torch.expm1(torch.tensor(-1.0, dtype=torch.float64))))  # dt = 1
        layer.in_proj.weight[4 + 1, 3] = -60.0  # A is at its floor wherever channel 3 is 1
        layer.in_proj.weight[4 + 2, 0] = 60.0  # the first token, which says 1 in channel 0, is written whole
        layer.in_proj.weight[4 + 3 :, 1] = 30.0  # half a turn where channel 1 is 1
        layer.in_proj.weight[:4, 3] = 30.0  # an open gate
        layer.qkv.v_proj.weight[:, 0] = 1.0
        layer.B_bias.fill_(1.0)
        layer.C_bias.fill_(1.0)
        layer.out_proj.weight.fill_(1.0)
    bits = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(0)).double()
    hidden = torch.zeros(1, 201, 4, dtype=torch.float64)
    hidden[..., 3] = 1
    hidden[0, 0, 0] = 1
    hidden[0, 1:, 1] = bits
    sign = layer(hidden)[0][0, 1:, 0].sign()
    assert torch.equal(sign, 1 - 2 * (bits.cumsum(0) % 2))


def test_a_long_float32_sequence_keeps_its_angle():
    torch.manual_seed(0)
    layer = Mamba3(16, state_size=8, head_dim=8)
    with torch.no_grad():
        layer.dt_bias.fill_(1.0)
    hidden = torch.randn(1, 20_000, 16)
    last = layer(hidden, output_state=True)[1]
    angle = layer.double()(hidden.double(), output_state=True)[1].angle
    apart = torch.remainder(last.angle - angle + torch.pi, 2 * torch.pi) - torch.pi
    assert float(apart.abs().max()) < 1e-3


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="head_dim = 5 does not divide"):
        Mamba3(16, head_dim=5)
    with pytest.raises(ValueError, match=r"rotary_fraction = 1\.5"):
        Mamba3(16, state_size=8, head_dim=8, rotary_fraction=1.5)
    with pytest.raises(ValueError, match="a pair at least"):
        Mamba3(16, state_size=2, head_dim=8)
