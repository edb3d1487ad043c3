"""From the weights of softmax attention to an SKA layer that starts where they left off."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.convert.hosts import HeadWeights
from echo_ska.nn import SpectralKoopmanAttention
from echo_ska.nn.mixer import KEPT_IN_FLOAT32


def low_rank_forms(query: Tensor, key: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Projections to `rank` whose products are as near as any of that rank to those of `query` and `key`.

    The product of a query and a key is the bilinear form x^T W_q^T W_k z of their tokens. Its best approximation of
    rank r, in the Frobenius norm, is its singular value decomposition cut at r (Eckart and Young); each side gets the
    root of the singular values. At r = D the products are the same, in another basis; rows that heads wider than their
    input have to spare are 0.

    Args:
        query, key: [H, D, d]; a bias is one column more, for an input that is always 1.
        rank: r, at most D.

    Returns:
        Both projections, [H, r, d], in the dtype of `query`.

    Raises:
        ValueError: `rank` is below 1 or above D.
    """
    if not 1 <= rank <= query.shape[1]:
        raise ValueError(f"rank must be between 1 and the head's width {query.shape[1]} to carry it over, got {rank}")
    query_basis, query_factor = torch.linalg.qr(query.double().mT)  # [H, d, k], [H, k, D]; k is the smaller of d, D
    key_basis, key_factor = torch.linalg.qr(key.double().mT)
    left, sizes, right = torch.linalg.svd(query_factor @ key_factor.mT)
    root = sizes[:, None, :rank].sqrt()
    reduced = (query_basis @ left[..., :rank] * root, key_basis @ right.mT[..., :rank] * root)  # [H, d, at most r]
    narrow_query, narrow_key = (
        F.pad(part, (0, rank - part.shape[-1])).mT.to(query.dtype).contiguous() for part in reduced
    )
    return narrow_query, narrow_key


def build_mixer(weights: HeadWeights, rank: int, settings: dict[str, Any]) -> SpectralKoopmanAttention:
    """An SKA layer as wide as the attention, with biases where that has them, started afresh (biases at zero).

    Raises:
        ValueError: settings of a layer without a state, or that exclude each other.
    """
    heads, head_dim, hidden_size = weights.value.shape
    mixer = SpectralKoopmanAttention(hidden_size, num_heads=heads, rank=rank, head_dim=head_dim, **settings)
    if not mixer.has_state:
        raise ValueError("a decoder's layers go on from a state: leave causal=True and normalisation='token'")
    for owner, name, bias in (
        (mixer.qkv, "q_proj", weights.query_bias),
        (mixer.qkv, "k_proj", weights.key_bias),
        (mixer.qkv, "v_proj", weights.value_bias),
        (mixer, "o_proj", weights.output_bias),
    ):
        if bias is not None:
            plain: nn.Linear = getattr(owner, name)
            plain.bias = nn.Parameter(plain.weight.new_zeros(plain.out_features))
    for name, parameter in mixer.named_parameters():
        dtype = torch.float32 if name in KEPT_IN_FLOAT32 else weights.value.dtype
        parameter.data = parameter.data.to(weights.value.device, dtype)
    return mixer


@torch.no_grad()
def carry_over(weights: HeadWeights, mixer: SpectralKoopmanAttention) -> int:
    """Give `mixer` what the attention has learnt; returns the number of parameters that come from it.

    Values and output are taken as they are, queries and keys by `low_rank_forms`. Rotary positions are left out: the
    form is that of a token and itself, the rotation at distance 0.
    """
    query, key = (
        torch.cat([weight, torch.zeros_like(weight[..., :1]) if bias is None else bias[..., None]], dim=-1)
        for weight, bias in ((weights.query, weights.query_bias), (weights.key, weights.key_bias))
    )
    carried = 0
    for linear, form in zip((mixer.qkv.q_proj, mixer.qkv.k_proj), low_rank_forms(query, key, mixer.rank), strict=True):
        linear.weight.copy_(form[..., :-1].flatten(0, 1))
        if linear.bias is not None:
            linear.bias.copy_(form[..., -1].flatten())
    mixer.qkv.v_proj.weight.copy_(weights.value.flatten(0, 1))
    if weights.value_bias is not None:
        mixer.qkv.v_proj.bias.copy_(weights.value_bias.flatten())
    mixer.o_proj.weight.copy_(weights.output)
    if weights.output_bias is not None:
        mixer.o_proj.bias.copy_(weights.output_bias)
    for linear in (mixer.qkv.q_proj, mixer.qkv.k_proj, mixer.qkv.v_proj, mixer.o_proj):
        carried += sum(parameter.numel() for parameter in linear.parameters())
    return carried
