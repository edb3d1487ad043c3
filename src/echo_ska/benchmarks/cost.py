"""What a training costs, counted before it is run: operations, hours on a GPU that is named, bytes of weights.

Counted are the products of matrices, a multiplication and an addition as two operations, as torch's FlopCounterMode
has it: of linear layers and Mamba-2's scan it finds the same numbers (it knows neither our kernels in C and Triton nor
softmax attention on a CPU). In the forward pass of one token:

- every linear layer of the model, the head included: 2 x its weights;
- Mamba-2's scan by chunks of 64 tokens; SKA's moments, solves and reads by chunks of 32, in the exact read with the
  inverse that they update, in a chunk-causal one with one Cholesky factor, its inverse and the whitened operator a
  refresh; softmax attention over the pairs s <= t alone, which is where the length enters (`operations` has them all).

A training step adds the backward pass: two products for each of a linear layer's and a scan's, those that
`operations` counts for SKA's read and for attention. Not counted: what SKA's read computes again, its whitening,
convolutions, norms, gates and activations (no products of matrices; a few per cent), the optimiser, and blocks that
gradient checkpointing runs a second time. So a utilisation (MFU) by these counts says what share of a GPU's peak went
into the model's products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from echo_ska.benchmarks import operations
from echo_ska.benchmarks.operations import Operations
from echo_ska.models import EchoConfig
from echo_ska.models.presets import build_on_meta
from echo_ska.nn.mamba2 import DEFAULT_CHUNK_SIZE

PEAKS = {
    "A100": 312e12,
    "H100 SXM": 989.4e12,
    "H200 SXM": 989.4e12,
}
"""Operations a second in bfloat16 with float32 sums, without sparsity, by NVIDIA's data sheets: "A100 Tensor Core GPU"
(312 teraFLOPS), "H100 Tensor Core GPU" (1,979 with sparsity for SXM) and "H200 Tensor Core GPU" (the same for SXM)."""

_DEVICES = {
    "NVIDIA A100-SXM4-40GB": "A100",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100-SXM-80GB": "A100",
    "NVIDIA A100-PCIE-40GB": "A100",
    "NVIDIA A100 80GB PCIe": "A100",
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H200": "H200 SXM",
}
"""Whole names, as `torch.cuda.get_device_name` gives them: an "NVIDIA H100 PCIe" or a part of a GPU is not here."""


@dataclass(frozen=True)
class Cost:
    """A training's cost.

    Attributes:
        parameters: of the model, tied ones once.
        forward: operations of the forward pass, a token, by part: "linear" (all linear layers but the head), "head",
            and the kinds of mixers ("mamba2", "ska", "full_attention").
        backward: of the backward pass likewise.
        tokens: trained on.
    """

    parameters: int
    forward: dict[str, float]
    backward: dict[str, float]
    tokens: int

    @property
    def flops_per_token(self) -> float:
        """Operations of a training step, a token: forward and backward."""
        return sum(self.forward.values()) + sum(self.backward.values())

    @property
    def flops(self) -> float:
        """Operations of the whole training."""
        return self.flops_per_token * self.tokens

    def hours(self, peak: float, utilisation: float, devices: int = 1) -> float:
        """Hours on so many devices.

        Args:
            peak: operations a second of one, such as `PEAKS["A100"]`.
            utilisation: the share of them that goes into the model (MFU), above 0 and at most 1: measured, or an
                assumption to be called one.
            devices: how many share the work, without loss.

        Raises:
            ValueError: a number is out of range.
        """
        if not (peak > 0 and 0 < utilisation <= 1 and devices >= 1):
            raise ValueError(
                f"Need peak > 0, utilisation in (0, 1] and devices >= 1, got {peak}, {utilisation} and {devices}."
            )
        return self.flops / (peak * utilisation * devices) / 3600

    @property
    def state_bytes(self) -> int:
        """Bytes that AdamW training holds whatever the batch: weights, gradients and two moments, float32 each.

        Activations come on top. They depend on the routes, the batch and on gradient checkpointing, and are measured
        (`peak_memory_bytes` in a training's log), not guessed.
        """
        return 16 * self.parameters


def training_cost(config: EchoConfig, length: int, tokens: int) -> Cost:
    """Count a training on `tokens` tokens in sequences of `length`.

    Args:
        config: of the model.
        length: tokens of a sequence, at least 1. Costs are per token: only attention's depends on it.
        tokens: of all steps together, at least 1.

    Raises:
        ValueError: a number is too small, or nobody has counted a kind of mixer.
    """
    if length < 1 or tokens < 1:
        raise ValueError(f"length and tokens must be at least 1, got {length} and {tokens}.")
    model = build_on_meta(config)
    linear = sum(module.weight.numel() for module in model.model.modules() if isinstance(module, nn.Linear))
    head = model.lm_head.weight.numel()
    forward: dict[str, float] = {"linear": 2.0 * linear, "head": 2.0 * head}
    backward = {name: 2 * count for name, count in forward.items()}
    for kind in config.layer_types:
        if kind not in MIXERS:
            raise ValueError(f"Nobody has counted the operations of {kind} layers: only of {', '.join(MIXERS)}.")
        counted = MIXERS[kind](config, length)
        forward[kind] = forward.get(kind, 0.0) + counted.forward / length
        backward[kind] = backward.get(kind, 0.0) + counted.backward / length
    return Cost(sum(parameter.numel() for parameter in model.parameters()), forward, backward, tokens)


def device_peak(device: torch.device, bfloat16: bool) -> float | None:
    """A device's peak, operations a second, if `PEAKS` has it; None for a CPU, an unknown GPU and float32 training."""
    if device.type != "cuda" or not bfloat16:
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """The peak of the GPU that `torch.cuda.get_device_name` calls `name`; None for one that is not in the list."""
    return PEAKS.get(_DEVICES.get(name, ""))


def _ska(config: EchoConfig, length: int) -> Operations:
    if config.refresh_interval is not None:
        return _frozen(config, length, config.power, config.refresh_interval)
    return operations.exact_read(
        length, heads=config.num_heads, rank=config.rank, head_dim=_head_dim(config), power=config.power
    )


def _ska_paper(config: EchoConfig, length: int) -> Operations:
    return _frozen(config, length, power=2, refresh_interval=64)


def _frozen(config: EchoConfig, length: int, power: int, refresh_interval: int) -> Operations:
    return operations.chunk_causal_read(
        length,
        heads=config.num_heads,
        rank=config.rank,
        head_dim=_head_dim(config),
        power=power,
        refresh_interval=refresh_interval,
    )


def _mamba2(config: EchoConfig, length: int) -> Operations:
    return operations.state_space_scan(
        length,
        heads=config.expand * config.hidden_size // config.mamba_head_dim,
        head_dim=config.mamba_head_dim,
        state_size=config.state_size,
        chunk_size=min(DEFAULT_CHUNK_SIZE, length),
    )


def _attention(config: EchoConfig, length: int) -> Operations:
    return operations.softmax_attention(length, heads=config.num_heads, head_dim=_head_dim(config))


def _head_dim(config: EchoConfig) -> int:
    assert config.head_dim is not None  # the configuration has seen to it
    return config.head_dim


MIXERS: dict[str, Callable[[EchoConfig, int], Operations]] = {
    "mamba2": _mamba2,
    "ska": _ska,
    "ska-paper": _ska_paper,
    "full_attention": _attention,
}
"""Operations of one sequence through one mixer, its linear layers apart."""
