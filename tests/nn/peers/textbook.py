"""The peers' recurrences as their papers write them, token by token, and the layers around them written out again."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from echo_ska.nn.peers import RWKV7, DeltaNet, GatedDeltaNet, GatedLinearAttention, LinearAttention


def outer(left, right):
    return left[..., :, None] * right[..., None, :]


def linear(S, q, k, v):
    return S + outer(v, k)


def delta(S, q, k, v, b):
    return S @ (torch.eye(k.shape[-1], dtype=k.dtype) - b[..., None] * outer(k, k)) + b[..., None] * outer(v, k)


def gated_delta(S, q, k, v, b, log_a):
    a, b = log_a.exp()[..., None], b[..., None]
    return S @ (a * (torch.eye(k.shape[-1], dtype=k.dtype) - b * outer(k, k))) + b * outer(v, k)


def gla(S, q, k, v, log_a):
    return S @ torch.diag_embed(log_a.exp()) + outer(v, k)


def rwkv7(S, q, k, v, c, a, log_w):
    return S @ (torch.diag_embed(log_w.exp()) - outer(c, a * c)) + outer(v, k)


RECURRENCES = {
    LinearAttention: linear,
    DeltaNet: delta,
    GatedDeltaNet: gated_delta,
    GatedLinearAttention: gla,
    RWKV7: rwkv7,
}


def textbook(kind, memory, tokens):
    """y [N, T, H, P] and the last memory [N, H, P, r], one token after the other."""
    reads = []
    for t in range(tokens[0].shape[1]):
        token = [tensor[:, t] for tensor in tokens]
        memory = RECURRENCES[kind](memory, *token)
        reads.append((memory @ token[0][..., None])[..., 0])
    return torch.stack(reads, dim=1), memory


def random_tokens(kind, rows=2, length=50, heads=2, rank=8, width=6, *, seed=0, hard=False):
    """Tokens for a recurrence, float64; `hard` ones repeat four keys, write fully, and forget a lot in places."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(rows, length, heads, *shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(rows, length, heads, *shape, generator=generator, dtype=torch.float64)

    def log_decay(size, strongest):
        usual = -0.1 * uniform(size) ** 2
        return torch.where(uniform(size) < 0.1, strongest * uniform(size), usual) if hard else usual

    query, key = F.normalize(normal(rank), dim=-1), F.normalize(normal(rank), dim=-1)
    if hard:
        which = torch.randint(4, (length,), generator=generator)
        key = key[:, :1].expand_as(key) if length < 4 else key[:, which]
    value = normal(width)
    strength = torch.ones_like(uniform(1)) if hard else uniform(1)
    if kind is LinearAttention:
        return [query, key, value]
    if kind is DeltaNet:
        return [query, key, value, strength]
    if kind is GatedDeltaNet:
        return [query, key, value, strength, log_decay(1, -20.0)]
    if kind is GatedLinearAttention:
        return [query, key, value, log_decay(rank, -5.0)]
    return [
        query,
        0.7 * key,
        value,
        key,
        torch.ones_like(key) if hard else uniform(rank),
        log_decay(rank, -math.exp(-0.5)),
    ]


def unit(x):
    return x / (x.square().sum(-1, keepdim=True) + 0.01).sqrt()


def layer(mixer, hidden):
    """The whole layer [N, T, d] -> [N, T, d] with all aids, from its parameters alone."""
    p = dict(mixer.named_parameters())
    heads = mixer.num_heads

    def linear_map(name, x=hidden):
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    channels = torch.cat([linear_map(f"qkv.{name}_proj") for name in "qkv"], dim=-1)
    taps = p["qkv.convolution.weight"]
    mixed = sum(F.pad(channels, (0, 0, i, 0))[:, : channels.shape[1]] * taps[:, i] for i in range(taps.shape[1]))
    q, k, v = mixed.split([p["qkv.q_proj.weight"].shape[0]] * 2 + [p["qkv.v_proj.weight"].shape[0]], dim=-1)
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q, k, v))
    q, k = unit(q), unit(k)
    b = (1.1 * torch.sigmoid(linear_map("gate_proj")) - 0.05).clamp(0, 1)[..., None]
    bonus = 0.0
    if type(mixer) is LinearAttention:
        tokens = [q, k, b * v]
    elif type(mixer) is DeltaNet:
        tokens = [q, k, v, b]
    elif type(mixer) is GatedDeltaNet:
        step = F.softplus(linear_map("decay.proj") + p["decay.dt_bias"])
        tokens = [q, k, v, b, (-p["decay.A_log"].exp() * step)[..., None]]
    elif type(mixer) is GatedLinearAttention:
        scores = linear_map("decay.up", linear_map("decay.down")).unflatten(-1, (heads, -1))
        tokens = [q, k, b * v, torch.sigmoid(scores).log() / 16]
    else:
        scores = linear_map("decay.up", linear_map("decay.down").tanh()).unflatten(-1, (heads, -1))
        a = torch.sigmoid(linear_map("rate.up", linear_map("rate.down"))).unflatten(-1, (heads, -1))
        c, stored = unit(p["channels.removal"] * k), k * (1 + (a - 1) * p["channels.mixing"])
        tokens = [q, stored, b * v, c, a, -math.exp(-0.5) * torch.sigmoid(scores)]
        bonus = (q * p["channels.bonus"] * stored).sum(-1, keepdim=True) * b * v
    empty = torch.zeros(len(hidden), heads, v.shape[-1], k.shape[-1], dtype=hidden.dtype)
    read, _ = textbook(type(mixer), empty, tokens)
    read = read / (read.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p["norm.weight"] + bonus
    return read.flatten(-2) @ p["o_proj.weight"].T
