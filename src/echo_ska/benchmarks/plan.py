"""What a run of the benchmark measures, and at which sizes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

PARTS = ("training", "memory", "prefill", "decoding", "layers")
"""What a run can measure; the gate and the machine's peak always come with it."""


class UnavailableError(ValueError):
    """A row of a table cannot run here; the sentence says what it needs."""


@dataclass(frozen=True)
class Sizes:
    """One layer's worth of heads.

    Attributes:
        heads: H.
        rank: width of keys and queries of SKA and of linear attention, r.
        head_dim: width of values, P; softmax attention's keys have it too.
        power: K of the spectral filter, where a route does not set its own.
        ridge: of SKA.
        refresh_interval: of the chunk-causal reading.
        state_size: columns of Mamba-2's state.
    """

    heads: int = 12
    rank: int = 48
    head_dim: int = 64
    power: int = 2
    ridge: float = 1.0
    refresh_interval: int = 64
    state_size: int = 64

    @property
    def hidden_size(self) -> int:
        """d of the whole mixers."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class Plan:
    """What one run measures. Lengths are in tokens, and ascend.

    Attributes:
        name: "full" or "quick" for the plans below, "own" for any other.
        device: "cpu" or "cuda".
        threads: torch's, for every route and for the peak.
        routes: rows of the tables by name; None takes all that can run here. A decoder or a layer belongs to a route.
        parts: some of `PARTS`.
        lengths: of forward and backward.
        memory_lengths: of the peak memory, those of them that are in `lengths`.
        layer_lengths: of the whole mixers.
        gate_lengths: at the first, routes are compared with the definition; at the second with a float64 route that
            was itself compared with it.
        prefill: (context, segment).
        contexts: tokens already in the state, of decoding.
        decode_tokens: tokens decoded in a row to see whether memory grows; 0 leaves it out.
        rounds: of the interleaved timings.
        seconds_per_call: a length at which a call would take longer, by what the length before it took, is left out.
        seconds_per_length: no further round begins after so long.
        sizes: of the heads.
    """

    name: str = "full"
    device: str = "cpu"
    threads: int = 1
    routes: tuple[str, ...] | None = None
    parts: tuple[str, ...] = PARTS
    lengths: tuple[int, ...] = (512, 2048, 8192, 16_384, 32_768, 65_536)
    memory_lengths: tuple[int, ...] = (2048, 8192, 32_768)
    layer_lengths: tuple[int, ...] = (512, 2048, 8192)
    gate_lengths: tuple[int, int] = (65, 1000)
    prefill: tuple[int, int] = (32_768, 2048)
    contexts: tuple[int, ...] = (1024, 2048, 32_768, 131_072, 1_048_576)
    decode_tokens: int = 1_000_000
    rounds: int = 7
    seconds_per_call: float = 90.0
    seconds_per_length: float = 60.0
    sizes: Sizes = dataclasses.field(default_factory=Sizes)

    @classmethod
    def full(cls, device: str, threads: int) -> Plan:
        """Everything; on a GPU longer sequences, and less time for each, since every call is short."""
        plan = cls(device=device, threads=threads)
        if device == "cpu":
            return plan
        return dataclasses.replace(
            plan,
            lengths=(512, 2048, 8192, 32_768, 131_072, 1_048_576),
            memory_lengths=(8192, 131_072, 1_048_576),
            layer_lengths=(2048, 8192, 32_768),
            prefill=(1_048_576, 65_536),
            decode_tokens=20_000,
            seconds_per_call=5.0,
            seconds_per_length=6.0,
        )

    @classmethod
    def quick(cls, device: str, threads: int) -> Plan:
        """A look that takes less than a minute on a laptop."""
        return dataclasses.replace(
            cls.full(device, threads),
            name="quick",
            parts=tuple(part for part in PARTS if part != "memory"),  # which takes a process a row
            lengths=(512, 2048),
            memory_lengths=(2048,),
            layer_lengths=(512,),
            gate_lengths=(33, 257),
            prefill=(4096, 1024),
            contexts=(1024, 32_768),
            decode_tokens=0,
            rounds=3,
            seconds_per_call=4.0,
            seconds_per_length=4.0,
        )

    def check(self) -> None:
        """Raise ValueError, saying what to change, where the plan cannot be followed."""
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is cuda, but torch sees no GPU: take cpu, or install a build of torch with CUDA")
        for name in ("threads", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.decode_tokens < 0:
            raise ValueError(f"decode_tokens must be at least 0, got {self.decode_tokens}")
        if unknown := sorted(set(self.parts) - set(PARTS)):
            raise ValueError(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
        for name in ("lengths", "memory_lengths", "layer_lengths", "gate_lengths", "prefill", "contexts"):
            tokens = getattr(self, name)
            if not tokens or min(tokens) < 1:
                raise ValueError(f"{name} must be numbers of tokens, at least 1 each, got {tokens}")
        if list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths must ascend, got {', '.join(map(str, self.lengths))}")
