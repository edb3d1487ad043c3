"""Mamba-2 against the PyTorch path of transformers' own mixer: forward and backward on one CPU core.

    python benchmarks/mamba2.py

Takes about a minute. No speed is printed before outputs and gradients have been found equal. Times are processor
times, the least of several interleaved runs, so that a busy machine disturbs them little.
"""

from __future__ import annotations

import platform
import time

import torch
import transformers
from torch import Tensor, nn
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from echo_ska.nn.mamba2 import Mamba2

SHAPES = [  # batch, tokens, hidden size, head_dim, state_size
    (64, 64, 64, 64, 16),
    (64, 64, 64, 32, 16),
    (1, 4096, 256, 64, 64),
]
PEER_CHUNKS = [256, 64]  # their default, and about their best here
ROUNDS = 8
TOLERANCE = 1e-4  # of the largest entry, in float32


def peer(ours: Mamba2, chunk_size: int) -> Mamba2Mixer:
    """Transformers' mixer with the parameters of `ours`."""
    config = Mamba2Config(
        hidden_size=ours.in_proj.in_features,
        num_heads=ours.heads,
        head_dim=ours.head_dim,
        state_size=ours.state_size,
        n_groups=1,
        chunk_size=chunk_size,
        num_hidden_layers=1,
    )
    theirs = Mamba2Mixer(config, layer_idx=0)
    weights = ours.state_dict()
    weights["conv1d.weight"] = weights.pop("convolution.weight").flip(1)[:, None]  # they count taps the other way
    weights["conv1d.bias"] = weights.pop("convolution.bias")
    theirs.load_state_dict(weights)
    return theirs


def train_step(mixer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient with respect to the input; the parameters' gradients are computed too."""
    mixer.zero_grad()
    x = x.detach().requires_grad_()
    output = mixer(x)
    y: Tensor = output[0] if isinstance(output, tuple) else output
    y.square().sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def check(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Refuse to go on where outputs or gradients differ."""
    pairs = zip(("outputs", "gradients"), train_step(ours, x), train_step(theirs, x), strict=True)
    for what, found, expected in pairs:
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if not error < TOLERANCE:
            raise SystemExit(f"{what} differ by {error:.1e} at {tuple(x.shape)}: no speed is worth printing")


def processor_seconds(mixer: nn.Module, x: Tensor) -> float:
    begin = time.process_time()
    train_step(mixer, x)
    return time.process_time() - begin


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, one core")
    for batch, length, hidden_size, head_dim, state_size in SHAPES:
        ours = Mamba2(hidden_size, head_dim=head_dim, state_size=state_size)
        mixers: dict[str, nn.Module] = {"ours": ours} | {f"{chunk}": peer(ours, chunk) for chunk in PEER_CHUNKS}
        x = torch.randn(batch, length, hidden_size)
        for name in mixers:
            check(ours, mixers[name], x)
        seconds = {name: float("inf") for name in mixers}
        for _ in range(ROUNDS):
            for name, mixer in mixers.items():
                seconds[name] = min(seconds[name], processor_seconds(mixer, x))
        print(f"B {batch}, T {length}, d {hidden_size}, head_dim {head_dim}, state_size {state_size}:")
        print(f"  Echo {1e3 * seconds['ours']:.1f} ms")
        for chunk in PEER_CHUNKS:
            theirs = seconds[f"{chunk}"]
            ratio = theirs / seconds["ours"]
            print(f"  transformers, chunks of {chunk}: {1e3 * theirs:.1f} ms, {ratio:.1f} times as long")


if __name__ == "__main__":
    main()
