"""What the controls compute, written out: slow, differentiable, in the dtype of their inputs (float64 in the gate).

SKA's own definition is `backend="recurrent"`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax over the keys s <= t of q_t . k_s / sqrt(D), [B, T, H, D]."""
    scores = torch.einsum("bthd,bshd->bhts", query, key) / query.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return torch.einsum("bhts,bshd->bthd", scores.masked_fill(future, -torch.inf).softmax(-1), value)


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """y_t = sum_{s<=t} v_s (k_s . q_t), [B, T, H, P]."""
    scores = torch.einsum("bthr,bshr->bhts", query, key).tril()
    return torch.einsum("bhts,bshp->bthp", scores, value)


def state_space_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """h_t = exp(A dt_t) h_{t-1} + dt_t x_t B_t^T and y_t = h_t C_t; shapes as in `echo_ska.nn.mamba2`."""
    batch, time, heads, width = x.shape
    state = x.new_zeros(batch, heads, width, B.shape[-1])
    outputs = []
    for t in range(time):
        write = torch.einsum("bhp,bn->bhpn", x[:, t] * dt[:, t, :, None], B[:, t])
        state = torch.exp(A * dt[:, t])[..., None, None] * state + write
        outputs.append(torch.einsum("bhpn,bn->bhp", state, C[:, t]))
    return torch.stack(outputs, dim=1)


def gated_delta_rule(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, write_weight: Tensor) -> Tensor:
    """S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^T k_t)^T and y_t = S_t^T q_t / sqrt(r) with a = exp(log_decay).

    Source: Yang et al., arXiv 2412.06464.
    """
    batch, time, heads, rank = query.shape
    state = query.new_zeros(batch, heads, rank, value.shape[-1])
    outputs = []
    for t in range(time):
        state = state * log_decay[:, t].exp()[..., None, None]
        missing = value[:, t] - torch.einsum("bhrp,bhr->bhp", state, key[:, t])
        write = write_weight[:, t, :, None] * missing
        state = state + torch.einsum("bhr,bhp->bhrp", key[:, t], write)
        outputs.append(torch.einsum("bhrp,bhr->bhp", state, query[:, t]) / rank**0.5)
    return torch.stack(outputs, dim=1)


def mesa_net(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, write_weight: Tensor, ridge: float
) -> Tensor:
    """y_t = C_t (G_t + ridge I)^-1 q_t with sums that decay: G_t = a_t G_{t-1} + b_t k_t k_t^T, C likewise.

    Source: von Oswald et al., arXiv 2506.05233.
    """
    batch, time, heads, rank = query.shape
    gram = query.new_zeros(batch, heads, rank, rank)
    moment = query.new_zeros(batch, heads, rank, value.shape[-1])
    identity = torch.eye(rank, dtype=query.dtype, device=query.device)
    outputs = []
    for t in range(time):
        decay = log_decay[:, t].exp()[..., None, None]
        written = write_weight[:, t, :, None] * key[:, t]
        gram = decay * gram + torch.einsum("bhr,bhs->bhrs", written, key[:, t])
        moment = decay * moment + torch.einsum("bhr,bhp->bhrp", written, value[:, t])
        solved = torch.linalg.solve(gram + ridge * identity, query[:, t])
        outputs.append(torch.einsum("bhrp,bhr->bhp", moment, solved))
    return torch.stack(outputs, dim=1)
