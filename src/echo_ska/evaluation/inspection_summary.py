"""An inspection in plain numbers: what its JSON file holds, and which tokens were written most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from echo_ska.evaluation.inspection import LayerInspection

BINS = 20
"""Of the histograms over [0, 1]."""

LISTED = 12


def layer_summary(layer: LayerInspection) -> dict[str, Any]:
    """Each head after the whole input (`heads`), and what changes along it (`along`: lists of N a head)."""
    summary: dict[str, Any] = {
        "layer": layer.layer,
        "power": layer.power,
        "reading": layer.reading,
        "rank": layer.rank,
        "heads": [head_summary(layer, head) for head in range(layer.num_heads)],
        "along": {
            "tokens": layer.positions.tolist(),
            "lambda_min": layer.gram_eigenvalues[..., 0].T.tolist(),
            "lambda_max": layer.gram_eigenvalues[..., -1].T.tolist(),
            "effective_rank": layer.effective_rank.T.tolist(),
            "condition": layer.condition.T.tolist(),
        },
    }
    if layer.operator_eigenvalues is not None and layer.operator_norm is not None:
        summary["along"]["operator_radius"] = layer.operator_eigenvalues.abs().amax(-1).T.tolist()
        summary["along"]["operator_norm"] = layer.operator_norm.T.tolist()
    return summary


def head_summary(layer: LayerInspection, head: int) -> dict[str, Any]:
    """One head after the whole input. Eigenvalues, radius and norm of the operator are without the gain."""
    summary: dict[str, Any] = {
        "head": head,
        "ridge": float(layer.ridge[head]),
        "gain": None if layer.gain is None else float(layer.gain[head]),
        "scale": None if layer.scale is None else float(layer.scale[head]),
        "lambda_min": float(layer.gram_eigenvalues[-1, head, 0]),
        "lambda_max": float(layer.gram_eigenvalues[-1, head, -1]),
        "effective_rank": float(layer.effective_rank[-1, head]),
        "condition": float(layer.condition[-1, head]),
        "float32_digits": float(layer.float32_digits[head]),
        "operator": None,
        "write_weight": None if layer.write_weight is None else _distribution(layer.write_weight[:, head]),
        "blend": None if layer.blend is None else _distribution(layer.blend[:, head]),
    }
    if layer.operator_eigenvalues is not None and layer.operator_norm is not None:
        eigenvalues = layer.operator_eigenvalues[-1, head]
        summary["operator"] = {
            "radius": float(eigenvalues.abs().max()),
            "norm": float(layer.operator_norm[-1, head]),
            "eigenvalues": [[value.real, value.imag] for value in eigenvalues.tolist()],
        }
    return summary


def _distribution(values: Tensor) -> dict[str, Any]:
    """Of numbers in [0, 1]: mean, ends, shares of exactly 0 and exactly 1, and counts in `BINS` equal bins."""
    return {
        "mean": float(values.double().mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        "share_of_exactly_0": float((values == 0).double().mean()),
        "share_of_exactly_1": float((values == 1).double().mean()),
        "histogram": torch.histc(values, BINS, 0, 1).long().tolist(),
    }


def written_tokens(layer: LayerInspection, input_ids: Tensor) -> list[dict[str, Any]]:
    """Each distinct token with its mean write weight over its places and the layer's heads, the largest first.

    Those that occur in less than a thousandth of the places are left out. Empty where the layer has no gate.

    Args:
        input_ids: int64 [T], those that were read.

    Returns:
        Dictionaries of `token`, `count` and `mean`.
    """
    if layer.write_weight is None:
        return []
    tokens, places, counts = input_ids.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(tokens), dtype=torch.float64)
    means = means.index_add(0, places, layer.write_weight.double().mean(-1)) / counts
    found = [
        {"token": token, "count": count, "mean": mean}
        for token, count, mean in zip(tokens.tolist(), counts.tolist(), means.tolist(), strict=True)
        if 1000 * count >= len(input_ids)
    ]
    return sorted(found, key=lambda entry: (-entry["mean"], -entry["count"], entry["token"]))


def strongest_places(layer: LayerInspection, count: int = LISTED) -> list[dict[str, Any]]:
    """The `count` places with the largest mean write weight over the heads, `position` and `weight`; first ones first.

    Empty where the layer has no gate.
    """
    if layer.write_weight is None:
        return []
    means = layer.write_weight.double().mean(-1)
    order = means.argsort(descending=True, stable=True)[:count].tolist()
    return [{"position": place, "weight": float(means[place])} for place in order]


def weight_by_role(layer: LayerInspection, roles: Sequence[str]) -> dict[str, float]:
    """Mean write weight, over the layer's heads, of the tokens of each role, in the order in which they first come.

    Empty where the layer has no gate.

    Args:
        roles: a word for each token.
    """
    if layer.write_weight is None:
        return {}
    means = layer.write_weight.double().mean(-1)
    return {role: float(means[torch.tensor([here == role for here in roles])].mean()) for role in dict.fromkeys(roles)}
