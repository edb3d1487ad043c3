"""What SKA's linear-recurrence peers share: the aids of SKA's recipe around a memory of fixed size."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from echo_ska.nn.aids import (
    gate_score,
    head_norm,
    open_at_random,
    precise,
    require_probability,
    stretched_sigmoid,
    unit_norm,
)
from echo_ska.nn.fla import kernel_for, scan_by
from echo_ska.nn.mixer import MixerState, SequenceMixer
from echo_ska.nn.packing import run_by_length
from echo_ska.nn.peers.chunks import scan_chunks
from echo_ska.nn.projections import QueryKeyValue, head_width


@dataclasses.dataclass
class LinearState(MixerState):
    """What a peer carries, N rows (one a sequence).

    Attributes:
        convolution: [N, conv_kernel - 1, H (2 r + P)], the last inputs of the short convolution, oldest first.
        memory: [N, H, P, r] (other sizes where `LinearMixer.memory_shape` says so), float32 or finer.
    """

    convolution: Tensor
    memory: Tensor


class LinearMixer(SequenceMixer):
    """Base of the mixers whose memory S [P, r] of each head follows a recurrence that is linear in S.

    Around the recurrence stands what SKA has (`QueryKeyValue`, unit norm, write gate, norm of what is read), by the
    same code, so that a comparison compares the ways of remembering alone. A subclass says

    - `tokens`: what of each token its recurrence reads, such that a token of ZEROS leaves the memory as it is
      (sequences of unequal length are filled up with such tokens);
    - `recur`: the recurrence, one token a row, which is the definition;
    - `chunk`: the same for many tokens at once, in products of matrices;
    - `kernel`, `kernel_arguments`: who does so on a GPU, in float32, if flash-linear-attention is installed.

    Args:
        hidden_size: d.
        num_heads: H.
        rank: width of keys and queries, r.
        head_dim: width of values, P; None = hidden_size / num_heads.
        conv_kernel, key_delay, tied_start: see `QueryKeyValue`.
        unit_keys: give keys and queries unit norm (`unit_norm`).
        write_gate: a stretched sigmoid of the token, per head: how strongly its pair (key, value) is written.
        initial_gate: where that weight starts, in (0, 1).
        gate_dropout: in training, the probability that a head writes all of a sequence in full, whatever its gate
            says.
        output_norm: RMSNorm of each head's read; False learns one scale per head instead.
        chunk_size: tokens that training computes at once; it changes speed and memory, not the function.
        norm_eps: epsilon of the norm.

    Raises:
        ValueError: the sizes do not fit.
    """

    _no_weight_decay: tuple[str, ...] = ("scale",)
    kernel: ClassVar[str | None] = None
    """The function of flash-linear-attention that runs the recurrence on a GPU, where there is one."""
    kernel_decays: ClassVar[bool] = False
    """Whether it decays by one gate a head."""

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        rank: int,
        head_dim: int | None = None,
        conv_kernel: int | None = 4,
        key_delay: int = 1,
        tied_start: bool = True,
        unit_keys: bool = True,
        write_gate: bool = True,
        initial_gate: float = 0.5,
        gate_dropout: float = 0.0,
        output_norm: bool = True,
        chunk_size: int = 32,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        head_dim = head_width(hidden_size, num_heads, head_dim)
        if not 0 < initial_gate < 1:
            raise ValueError(f"initial_gate must be between 0 and 1, got {initial_gate}")
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        self.hidden_size, self.num_heads, self.rank, self.head_dim = hidden_size, num_heads, rank, head_dim
        require_probability("gate_dropout", gate_dropout)
        self.unit_keys, self.initial_gate, self.chunk_size = unit_keys, initial_gate, chunk_size
        self.gate_dropout = gate_dropout
        self.qkv = QueryKeyValue(
            hidden_size,
            num_heads=num_heads,
            key_dim=rank,
            value_dim=head_dim,
            conv_kernel=conv_kernel,
            key_delay=key_delay,
            tied_start=tied_start,
        )
        self.gate_proj = nn.Linear(hidden_size, num_heads) if write_gate else None
        self.norm = nn.RMSNorm(head_dim, eps=norm_eps) if output_norm else None
        self.scale = None if output_norm else nn.Parameter(torch.empty(num_heads))
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start this layer's own parameters; submodules start theirs."""
        if self.scale is not None:
            nn.init.ones_(self.scale)
        if self.gate_proj is not None:
            nn.init.constant_(self.gate_proj.bias, gate_score(self.initial_gate))

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        """Sizes of one sequence's memory: heads, rows and columns."""
        return self.num_heads, self.head_dim, self.rank

    def tokens(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        """What the recurrence reads of each token.

        Args:
            hidden_states: [..., d], the layer's input.
            query, key: [..., H, r], of unit norm if `unit_keys`; float32 or finer, as all that follows.
            value: [..., H, P].
            weight: the write gate, [..., H, 1] in [0, 1], or None for 1.

        Returns:
            Tensors [..., H, any], in the order that `recur` and `chunk` take them.
        """
        raise NotImplementedError

    def recur(self, memory: Tensor, *tokens: Tensor) -> Tensor:
        """One token a row: changes `memory` [N, *memory_shape] in place and returns what is read, [N, H, P]."""
        raise NotImplementedError

    @staticmethod
    def chunk(memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens of a chunk at once; see `chunks.Chunk`, whose form this has."""
        raise NotImplementedError

    @staticmethod
    def kernel_arguments(*tokens: Tensor) -> dict[str, Tensor]:
        """The tokens [N, T, H, any] as `kernel` takes them, by name."""
        raise NotImplementedError

    def scan(self, memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens [N, T, H, any]: what is read, [N, T, H, P], and the memory after the last, a tensor of its own.

        `memory` [N, *memory_shape] stays as it is; T is at least 1.
        """
        if self.kernel is not None and (kernel := kernel_for(self.kernel, tokens[0], self.kernel_decays)) is not None:
            return scan_by(kernel, memory, self.kernel_arguments(*tokens))
        return scan_chunks(self.chunk, memory, tokens, self.chunk_size)

    def forward(
        self,
        hidden_states: Tensor,
        state: LinearState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
    ) -> tuple[Tensor, LinearState | None]:
        """Mix along time; see `SequenceMixer.forward`. Between the projections all is float32 or float64."""
        self.check_inputs(hidden_states, state, cu_seqlens)
        query, key, value, tail = self.qkv(
            hidden_states,
            None if state is None else state.convolution,
            cu_seqlens=cu_seqlens,
            output_state=output_state,
        )
        with torch.autocast(hidden_states.device.type, enabled=False):
            tokens = self._tokens(hidden_states, query, key, value, cu_seqlens)
            if state is None:
                sequences = len(hidden_states) if cu_seqlens is None else len(cu_seqlens) - 1
                memory = tokens[0].new_zeros(sequences, *self.memory_shape)
            else:
                memory = state.memory.to(tokens[0].dtype)
            read, memory = run_by_length(self._scan, (memory,), tokens, cu_seqlens)
            read = self._finished(read, value.dtype, tokens)
        mixed = self.o_proj(read.flatten(-2))
        return mixed, None if tail is None else LinearState(tail, memory)

    def advance(self, hidden_states: Tensor, state: LinearState) -> Tensor:
        """The recurrence itself, in place; see `SequenceMixer.advance`."""
        hidden_states = hidden_states.squeeze(1)
        query, key, value = self.qkv.step(hidden_states, state.convolution)
        with torch.autocast(hidden_states.device.type, enabled=False):
            tokens = self._tokens(hidden_states, query, key, value)
            read = self._finished(self.recur(state.memory, *tokens), value.dtype, tokens)
        return self.o_proj(read.flatten(-2)).unsqueeze(1)

    def _scan(self, memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`scan`, of any number of tokens."""
        rows, length = tokens[0].shape[:2]
        if length:
            return self.scan(memory, *tokens)
        return tokens[0].new_zeros(rows, 0, self.num_heads, self.head_dim), memory.clone()

    def _tokens(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        query, key, value = precise(query), precise(key), precise(value)
        if self.unit_keys:
            query, key = unit_norm(query), unit_norm(key)
        weight = None
        if self.gate_proj is not None:
            scores = self.gate_proj(hidden_states.to(self.gate_proj.weight.dtype))
            weight = stretched_sigmoid(scores.to(query.dtype)).unsqueeze(-1)
            if self.training and self.gate_dropout > 0 and hidden_states.dim() == 3:  # not a single decoded token
                weight = open_at_random(weight, self.gate_dropout, cu_seqlens)
        return self.tokens(hidden_states, query, key, value, weight)

    def _finished(self, read: Tensor, dtype: torch.dtype, tokens: tuple[Tensor, ...]) -> Tensor:
        """What is read, [..., H, P], as the output projection takes it."""
        if self.scale is not None:
            read = read * self.scale.to(read.dtype)[:, None]
        return head_norm(read.to(dtype), self.norm)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LinearState:
        """Zeros, on the parameters' device and in their dtype unless told; the memory is float32 at least."""
        weight = self.o_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        precise_dtype = torch.promote_types(dtype, torch.float32)
        return LinearState(
            self.qkv.init_tail(batch_size, device=device, dtype=dtype),
            torch.zeros(batch_size, *self.memory_shape, device=device, dtype=precise_dtype),
        )

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state: the same after any `length`."""
        return self.init_state(1, device="meta").nbytes


def weighted_mean(read: Tensor) -> Tensor:
    """Weighted sums of values with the sum of the weights behind them, [..., P + 1], to the values' mean [..., P]."""
    sums = read[..., -1:]
    # Nothing is written where every gate so far was closed: there the read is 0 as well.
    return read[..., :-1] / torch.where(sums > 0, sums, torch.ones_like(sums))
