"""The formula of docs/method.md section 1 written out token by token with explicit inverses: shares no code."""

from __future__ import annotations

import torch
from torch import Tensor


def definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ridge: Tensor,
    gain: Tensor,
    scale: Tensor,
    write_weight: Tensor | None = None,
    blend: Tensor | None = None,
    power: int = 2,
    causal: bool = True,
    refresh_interval: int | None = None,
) -> Tensor:
    batch, time, heads, rank = query.shape
    output = torch.zeros_like(value)
    for b in range(batch):
        for h in range(heads):
            weight = torch.ones(time, dtype=query.dtype) if write_weight is None else write_weight[b, :, h]
            x = weight.sqrt()[:, None] * key[b, :, h]
            u = weight.sqrt()[:, None] * value[b, :, h]
            for t in range(time):
                seen = t + 1
                if refresh_interval is not None:
                    seen = t // refresh_interval * refresh_interval
                if not causal:
                    seen = time
                gram = x[:seen].T @ x[:seen]
                lag = x[1:seen].T @ x[: max(seen - 1, 0)]
                moment = u[:seen].T @ x[:seen]
                inverse = torch.linalg.inv(gram + ridge[h] * torch.eye(rank, dtype=x.dtype))
                plain = inverse @ query[b, t, h]
                point = plain
                for _ in range(power):
                    point = gain[h] * (inverse @ (lag @ point))
                if blend is not None:
                    point = (1 - blend[b, t, h]) * plain + blend[b, t, h] * point
                output[b, t, h] = scale[h] * (moment @ point)
    return output
