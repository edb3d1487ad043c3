"""Spectral Koopman Attention as a layer."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from echo_ska.algebra import SufficientStatistics, weighted
from echo_ska.nn.aids import (
    GATE_STRETCH,
    head_norm,
    is_number,
    open_at_random,
    precise,
    require_probability,
    require_whole,
    stretched_sigmoid,
    unit_norm,
)
from echo_ska.nn.divergence import gives_nan, nan_from
from echo_ska.nn.initialization import inverse_softplus
from echo_ska.nn.mixer import MixerState, SequenceMixer
from echo_ska.nn.parts import PartExchange, last_sequence, last_tokens
from echo_ska.nn.projections import QueryKeyValue, head_width
from echo_ska.ops import RecurrentState, spectral_koopman_attention
from echo_ska.ops.arguments import RIDGE_FLOOR, require_power
from echo_ska.ops.decoding import DecodingState, advance

SUMMARY_SEGMENT = 4096
"""Tokens whose weighted keys and values stand in the sums' dtype at once, while a part of a sequence is summed up."""


class HeadInputs(NamedTuple):
    """What each head makes of each token before anything is stored or read; [B, T, H, ...], or [N, H, ...] decoding.

    Attributes:
        query, key: [..., H, r], normalised.
        value: [..., H, P].
        write_weight: [..., H] in [0, 1], or None where everything is stored.
        blend: [..., H] in [0, 1], or None for the pure power filter.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    write_weight: Tensor | None
    blend: Tensor | None


@dataclasses.dataclass
class SpectralKoopmanState(MixerState):
    """What an SKA layer carries, N rows (one a sequence).

    Attributes:
        convolution: [N, conv_kernel - 1, H (2 r + P)], the last inputs of the short convolution, oldest first.
        recurrent: the op's state; a `DecodingState` from the layer's first `step` on, until `compact`.
    """

    convolution: Tensor
    recurrent: RecurrentState | DecodingState

    def compact(self) -> SpectralKoopmanState:
        """With the statistics alone, without the inverse that decoding carries along."""
        if isinstance(self.recurrent, RecurrentState):
            return self
        return SpectralKoopmanState(self.convolution.clone(), self.recurrent.to_recurrent())


class SpectralKoopmanAttention(SequenceMixer):
    """Recall by ridge regression of values on keys, from a state whose size does not depend on the length.

    The defaults are the recipe that was measured to learn (docs/recipe.md says what each choice is worth);
    `paper()` gives the published settings.

    Args:
        hidden_size: d.
        num_heads: H.
        rank: width of keys and queries, r.
        head_dim: width of values, P; None = hidden_size / num_heads.
        power: K of the spectral filter; 0 is plain ridge regression.
        blended: mix the filtered read with the plain one by a weight a_t = sigmoid(<w, q_t> + b) per head. Pure
            powers look K steps ahead of the match, so without a blend they hurt where keys have no dynamics.
        initial_ridge: where the ridge starts, at least 5e-4; it is learnt per head (through softplus). Near 1 for
            unit-norm keys: with one far below the Gram matrix's eigenvalues, what a power reads fades with length.
        fixed_ridge: keep the ridge at its start.
        conv_kernel, key_delay: see `QueryKeyValue`.
        write_gate: weigh each stored pair (key, value) by a stretched sigmoid of the token, per head.
        gate_dropout: in training, the probability that a head stores all of a sequence in full, whatever its gate says
            (docs/recipe.md says what for).
        output_norm: RMSNorm of each head's read (its size varies with how often a key was stored); False learns
            one scale per head instead.
        normalisation: "token" divides every key and query by its own norm; "sequence-max" by the largest key norm
            of the sequence, which looks into the future (docs/method.md) and cannot continue from a state.
        zero_output: start the output projection at zero (it stalls learning).
        refresh_interval: None reads exactly; S reads chunk-causally (see the op).
        causal: False makes every token read all tokens that `write_mask` marks; the layer then has no state.

    Raises:
        ValueError: a size or a setting is none, the sizes do not fit, or settings exclude each other.
    """

    # Zero has a meaning of its own for each of these, and is where none of them should drift.
    _no_weight_decay = ("raw_ridge", "gain", "scale", "blend_weight", "blend_bias")

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        rank: int,
        head_dim: int | None = None,
        power: int = 2,
        blended: bool = True,
        initial_ridge: float = 1.0,
        fixed_ridge: bool = False,
        conv_kernel: int | None = 4,
        key_delay: int = 1,
        write_gate: bool = True,
        gate_dropout: float = 0.0,
        output_norm: bool = True,
        normalisation: Literal["token", "sequence-max"] = "token",
        zero_output: bool = False,
        refresh_interval: int | None = None,
        causal: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        head_dim = head_width(hidden_size, num_heads, head_dim)
        require_whole("rank", rank, 1)
        require_power(power)
        require_whole("conv_kernel", conv_kernel, 1, optional=True)
        require_whole("key_delay", key_delay, 0)
        require_whole("refresh_interval", refresh_interval, 1, optional=True)
        for name, flag in (
            ("blended", blended),
            ("fixed_ridge", fixed_ridge),
            ("write_gate", write_gate),
            ("output_norm", output_norm),
            ("zero_output", zero_output),
            ("causal", causal),
        ):
            if not isinstance(flag, bool):
                raise ValueError(f"{name} must be True or False, got {flag!r}")
        if not is_number(norm_eps) or not 0 < norm_eps < math.inf:
            raise ValueError(f"norm_eps must be a positive number, got {norm_eps!r}")
        if not is_number(initial_ridge) or not RIDGE_FLOOR <= initial_ridge < math.inf:
            raise ValueError(
                f"initial_ridge must be at least {RIDGE_FLOOR:g}, the least that float32 can honour "
                f"(docs/numerics.md), and finite, got {initial_ridge!r}"
            )
        if normalisation not in ("token", "sequence-max"):
            raise ValueError(f'normalisation must be "token" or "sequence-max", got {normalisation!r}')
        if refresh_interval is not None and not causal:
            raise ValueError("refresh_interval is for causal reading: leave it None with causal=False")
        require_probability("gate_dropout", gate_dropout)
        self.hidden_size, self.num_heads, self.rank = hidden_size, num_heads, rank
        self.head_dim, self.power = head_dim, power
        self.gate_dropout = gate_dropout
        self.initial_ridge, self.normalisation, self.zero_output = initial_ridge, normalisation, zero_output
        self.refresh_interval, self.causal, self.gate_stretch = refresh_interval, causal, GATE_STRETCH
        self.qkv = QueryKeyValue(
            hidden_size,
            num_heads=num_heads,
            key_dim=rank,
            value_dim=head_dim,
            conv_kernel=conv_kernel,
            key_delay=key_delay,
        )
        self.raw_ridge = nn.Parameter(torch.empty(num_heads), requires_grad=not fixed_ridge)
        self.gain = nn.Parameter(torch.empty(num_heads)) if power > 0 else None
        self.gate_proj = nn.Linear(hidden_size, num_heads) if write_gate else None
        self.blend_weight = nn.Parameter(torch.empty(num_heads, rank)) if blended and power > 0 else None
        self.blend_bias = nn.Parameter(torch.empty(num_heads)) if blended and power > 0 else None
        self.norm = nn.RMSNorm(head_dim, eps=norm_eps) if output_norm else None
        self.scale = None if output_norm else nn.Parameter(torch.empty(num_heads))
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)
        self.reset_parameters()

    @classmethod
    def paper(
        cls, hidden_size: int, *, num_heads: int, rank: int, head_dim: int | None = None, prefix_mask: bool = False
    ) -> SpectralKoopmanAttention:
        """The published settings (arXiv 2605.06997), for comparison; most tasks are not learnt with them.

        Sequence-max normalisation, ridge 1e-3, a pure power K = 2, no convolution, gate or output norm, an output
        projection that starts at zero; chunk-causal with S = 64, or (`prefix_mask`) non-causal over a mask.
        """
        return cls(
            hidden_size,
            num_heads=num_heads,
            rank=rank,
            head_dim=head_dim,
            power=2,
            blended=False,
            initial_ridge=1e-3,
            fixed_ridge=True,
            conv_kernel=None,
            write_gate=False,
            output_norm=False,
            normalisation="sequence-max",
            zero_output=True,
            refresh_interval=None if prefix_mask else 64,
            causal=not prefix_mask,
        )

    def reset_parameters(self) -> None:
        """Start this layer's own parameters; submodules start theirs."""
        nn.init.constant_(self.raw_ridge, inverse_softplus(self.initial_ridge))
        for ones in (self.gain, self.scale):
            if ones is not None:
                nn.init.ones_(ones)
        if self.blend_weight is not None and self.blend_bias is not None:
            # Half plain, half filtered: both readings get a gradient from the first step on.
            nn.init.zeros_(self.blend_weight)
            nn.init.zeros_(self.blend_bias)
        if self.gate_proj is not None:
            # Every token starts half written; what not to write is learnt.
            nn.init.zeros_(self.gate_proj.bias)
        if self.zero_output:
            nn.init.zeros_(self.o_proj.weight)

    @property
    def ridge(self) -> Tensor:
        """The ridge of each head, [H], float32 or finer, no less than float32 can honour (docs/numerics.md).

        At that floor it has the gradient of the ridge below, so that a head that has sunk there can rise again.
        """
        ridge = F.softplus(precise(self.raw_ridge))
        floored = ridge.clamp_min(RIDGE_FLOOR)
        return floored.detach() + (ridge - ridge.detach()) if ridge.requires_grad else floored

    def forward(
        self,
        hidden_states: Tensor,
        state: SpectralKoopmanState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
        write_mask: Tensor | None = None,
    ) -> tuple[Tensor, SpectralKoopmanState | None]:
        """Mix along time; see `SequenceMixer.forward`.

        Args:
            write_mask: [B, T] bool, the tokens that are stored; None stores all.

        Raises:
            ValueError: a state is given or asked for where the settings allow none.
        """
        if isinstance(state, SpectralKoopmanState):
            state = state.compact()
        self.check_inputs(hidden_states, state, cu_seqlens)
        if write_mask is not None and write_mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"write_mask must be {list(hidden_states.shape[:2])}, [batch, time], got {list(write_mask.shape)}"
            )
        if (state is not None or output_state) and not self.has_state:
            raise ValueError(
                "a layer that reads the whole sequence (causal=False or sequence-max normalisation) has no state: "
                "run it on whole sequences with use_cache=False"
            )
        initial, tail = None, None
        if state is not None:
            assert isinstance(state.recurrent, RecurrentState)
            initial, tail = state.recurrent, state.convolution
        if self.exchange is not None and self.history:
            last = self.qkv.project(last_tokens(hidden_states, self.history))
            tail = self.exchange.inputs_before(last, tail, cu_seqlens)
        inputs, tail = self.head_inputs(hidden_states, tail, cu_seqlens=cu_seqlens, output_state=output_state)
        write_weight = inputs.write_weight
        if self.training and self.gate_dropout > 0 and write_weight is not None:
            # A part does not know which of all sequences its own are: one draw for all, the same in every part.
            sequences = cu_seqlens if self.exchange is None else None
            write_weight = open_at_random(write_weight, self.gate_dropout, sequences)
        if write_mask is not None:
            stored = write_mask.unsqueeze(-1).to(inputs.query.dtype)
            write_weight = stored.expand(inputs.query.shape[:3]) if write_weight is None else write_weight * stored
        if self.exchange is not None:
            initial = self._before(self.exchange, inputs.key, inputs.value, write_weight, initial, cu_seqlens)
        try:
            output, recurrent = spectral_koopman_attention(
                inputs.query,
                inputs.key,
                inputs.value,
                write_weight,
                ridge=self.ridge,
                power=self.power,
                blend=inputs.blend,
                gain=1.0 if self.gain is None else self.gain,
                scale=1.0 if self.scale is None else self.scale,
                causal=self.causal,
                refresh_interval=self.refresh_interval,
                initial_state=initial,
                output_final_state=output_state,
                cu_seqlens=cu_seqlens,
            )
        except ArithmeticError:  # `NotFiniteError` is one
            if output_state or not gives_nan():
                raise
            before = [] if initial is None else initial.statistics.tensors().values()
            read = (inputs.query, inputs.key, write_weight, inputs.blend, self.ridge, self.gain, self.scale)
            output, recurrent = nan_from(inputs.value, [*read, *before]), None
        mixed = self.o_proj(head_norm(output, self.norm).flatten(-2))
        if tail is None or recurrent is None:
            return mixed, None
        return mixed, SpectralKoopmanState(tail, recurrent)

    def head_inputs(
        self,
        hidden_states: Tensor,
        tail: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
    ) -> tuple[HeadInputs, Tensor | None]:
        """What `forward` hands the op, without the op: queries, keys, values, write weights and blend of all tokens.

        Args:
            hidden_states: [B, T, d], the layer's input.
            tail: what the short convolution saw before, `SpectralKoopmanState.convolution`; None for nothing.
            cu_seqlens: [N + 1] sequence boundaries of a packed batch.
            output_state: whether to return the convolution's last inputs.

        Returns:
            The inputs of each head, [B, T, H, ...], and the next `tail` or None.
        """
        query, key, value, tail = self.qkv(hidden_states, tail, cu_seqlens=cu_seqlens, output_state=output_state)
        return self._conditioned(hidden_states, query, key, value, cu_seqlens), tail

    def _before(
        self,
        exchange: PartExchange,
        key: Tensor,
        value: Tensor,
        write_weight: Tensor | None,
        start: RecurrentState | None,
        cu_seqlens: Tensor | None,
    ) -> RecurrentState:
        """The state before this part: `start`, the same in all processes, and then the parts before."""
        with torch.autocast(key.device.type, enabled=False):
            tokens = [last_sequence(tokens, cu_seqlens) for tokens in (key, value)]
            weight = None if write_weight is None else last_sequence(write_weight, cu_seqlens)
            before = exchange.summary_before(part_statistics(tokens[0], tokens[1], weight), cu_seqlens)
        position = before.count
        if start is not None:
            before, position = start.statistics + before, start.position + position
        if cu_seqlens is not None and int(cu_seqlens[1]) == 0:
            # Nothing goes on from the part before, which may have ended inside an interval. (Times 0: the exchange's
            # backward pass is waited for.)
            before = before.map(lambda tensor: torch.cat([0 * tensor[:1], tensor[1:]]))
            position = before.count
        # Parts end at multiples of the refresh interval: what is frozen before one is all before it.
        return RecurrentState(before, before if self.refresh_interval is not None else None, position)

    def _conditioned(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor | None = None
    ) -> HeadInputs:
        query, key = self._normalised(precise(query), precise(key), cu_seqlens)
        return HeadInputs(query, key, value, self._write_weight(hidden_states, query.dtype), self._blend(query))

    def prepare(self, state: SpectralKoopmanState) -> None:
        """Bring `state` into its decoding form, which belongs to the layer's present ridge, and do what is due."""
        if isinstance(state.recurrent, RecurrentState):
            state.recurrent = DecodingState.of(
                state.recurrent, self.ridge, power=self.power, refresh_interval=self.refresh_interval
            )
        state.recurrent.prepare(self.ridge)

    def advance(self, hidden_states: Tensor, state: SpectralKoopmanState) -> Tensor:
        """Write and read one token a row in O(r^2 + r P) a head; see `SequenceMixer.advance`."""
        assert isinstance(state.recurrent, DecodingState), "prepare() comes before advance()"
        hidden_states = hidden_states.squeeze(1)
        inputs = self._conditioned(hidden_states, *self.qkv.step(hidden_states, state.convolution))  # [N, H, ...]
        output = advance(
            state.recurrent,
            inputs.query,
            inputs.key,
            inputs.value,
            inputs.write_weight,
            power=self.power,
            blend=inputs.blend,
            gain=1.0 if self.gain is None else self.gain,
            scale=1.0 if self.scale is None else self.scale,
        )
        return self.o_proj(head_norm(output, self.norm).flatten(-2)).unsqueeze(1)

    def check_inputs(self, hidden_states: Tensor, state: Any, cu_seqlens: Tensor | None) -> None:
        """Also for a state in its decoding form, whose tensors are other ones; see `SequenceMixer.check_inputs`."""
        if not isinstance(state, SpectralKoopmanState) or isinstance(state.recurrent, RecurrentState):
            return super().check_inputs(hidden_states, state, cu_seqlens)
        super().check_inputs(hidden_states, None, cu_seqlens)
        rows, height = hidden_states.shape[0], 2 * self.rank + self.head_dim
        tail = self.qkv.init_tail(rows, device="meta", dtype=None)
        for name, tensor, wanted in (
            ("convolution", state.convolution, list(tail.shape)),
            ("moments", state.recurrent.moments, [rows, self.num_heads, height, self.rank]),
        ):
            if list(tensor.shape) != wanted:
                raise ValueError(
                    f"state is of another layer or batch: its {name} is {list(tensor.shape)}, this call's {wanted} "
                    "(rows first)"
                )

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SpectralKoopmanState:
        device = device or self.raw_ridge.device
        statistics = SufficientStatistics.empty(batch_size, self.num_heads, self.rank, self.head_dim, device=device)
        frozen = statistics.clone() if self.refresh_interval is not None else None
        tail = self.qkv.init_tail(batch_size, device=device, dtype=dtype or self.o_proj.weight.dtype)
        return SpectralKoopmanState(tail, RecurrentState(statistics, frozen, statistics.count.clone()))

    @property
    def has_state(self) -> bool:  # type: ignore[override]
        """Whether reading is causal and without a look at the largest key to come."""
        return self.causal and self.normalisation == "token"

    @property
    def has_summary(self) -> bool:  # type: ignore[override]
        """Yes, where there is a state: its statistics add."""
        return self.has_state

    @property
    def history(self) -> int:
        return self.qkv.history

    def state_bytes(self, length: int) -> int:
        if not self.has_state:
            raise ValueError("a layer that reads the whole sequence has no state, and so no bytes of it")
        return self.init_state(1, device="meta").nbytes

    def _blend(self, query: Tensor) -> Tensor | None:
        """[..., H, r] -> [..., H] in [0, 1], or None for the pure power filter."""
        if self.blend_weight is None or self.blend_bias is None:
            return None
        scores = (query * self.blend_weight.to(query.dtype)).sum(-1)
        return torch.sigmoid(scores + self.blend_bias.to(query.dtype))

    def _write_weight(self, hidden_states: Tensor, dtype: torch.dtype) -> Tensor | None:
        """[..., d] -> [..., H] in [0, 1]; exactly 0 below a sigmoid of about s, exactly 1 above about 1 - s."""
        if self.gate_proj is None:
            return None
        return stretched_sigmoid(self.gate_proj(hidden_states).to(dtype), self.gate_stretch)

    def _normalised(self, query: Tensor, key: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.normalisation == "token":
            return unit_norm(query), unit_norm(key)
        if key.shape[1] == 0:  # no key is the largest
            return query, key
        norms = key.norm(dim=-1, keepdim=True)  # [B, T, H, 1]
        if cu_seqlens is None:
            largest = norms.amax(dim=1, keepdim=True)
        else:
            sequences = norms.split(cu_seqlens.diff().tolist(), dim=1)
            parts = [part.amax(dim=1, keepdim=True).expand_as(part) for part in sequences if part.shape[1]]
            largest = torch.cat(parts, dim=1)
        largest = largest.clamp_min(torch.finfo(largest.dtype).tiny)
        return query / largest, key / largest


def part_statistics(key: Tensor, value: Tensor, write_weight: Tensor | None) -> SufficientStatistics:
    """The statistics of a part of a sequence, read from nothing; weights are applied in the tokens' own dtype.

    What stands in the sums' dtype is computed again in the backward pass: it would take more memory than all else that
    the layer keeps of its tokens.

    Args:
        key: [B, T, H, r].
        value: [B, T, H, P].
        write_weight: [B, T, H] in [0, 1], or None for 1.
    """
    batch, length, heads, rank = key.shape
    if length == 0:
        return SufficientStatistics.empty(batch, heads, rank, value.shape[-1], device=key.device)
    key, value = weighted(key, value, None if write_weight is None else write_weight.to(key.dtype))
    pieces = [
        checkpoint(
            SufficientStatistics.from_tokens,
            *(t[:, begin : begin + SUMMARY_SEGMENT] for t in (key, value)),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for begin in range(0, length, SUMMARY_SEGMENT)
    ]
    return functools.reduce(operator.add, pieces)
