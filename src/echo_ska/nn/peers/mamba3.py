"""Mamba-3 (one input, one output a head): a state space whose discretisation sees two tokens and whose state turns."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.algebra import accumulator_dtype
from echo_ska.nn.aids import norm_weight, precise
from echo_ska.nn.initialization import start_steps
from echo_ska.nn.mixer import MixerState, SequenceMixer
from echo_ska.nn.packing import run_by_length, sequence_lengths
from echo_ska.nn.peers.chunks import scan_chunks
from echo_ska.nn.projections import QueryKeyValue

RATE_FLOOR = 1e-4  # the least |A|: no head remembers for ever


@dataclasses.dataclass
class Mamba3State(MixerState):
    """What a Mamba-3 layer carries, N rows (one a sequence); all but `convolution` is float32 or finer.

    Attributes:
        convolution: [N, conv_kernel - 1, 2 state_size + inner], the short convolution's last inputs, oldest first.
        angle: [N, heads, angles], how far the state has turned, in [-pi, pi).
        ssm: [N, heads, head_dim, state_size].
        previous_b: [N, heads, state_size], B of the last token, turned; the next step writes it once more.
        previous_x: [N, heads, head_dim], x of the last token.
    """

    convolution: Tensor
    angle: Tensor
    ssm: Tensor
    previous_b: Tensor
    previous_x: Tensor


class Mamba3(SequenceMixer):
    """The single-input, single-output Mamba-3 layer of Lahoti et al. (arXiv 2603.15569), with one B/C group.

    Per head, with dt_t = softplus(.), A_t = -softplus(.), trapezoid weight l_t = sigmoid(.), alpha_t = exp(A_t dt_t):

        h_t = alpha_t h_{t-1} + (1 - l_t) dt_t alpha_t x_{t-1} B_{t-1}^T + l_t dt_t x_t B_t^T
        y_t = (h_t C_t + D x_t) * SiLU(z_t)

    B and C are normalised over their channels (as queries and keys are elsewhere), get a bias per head, and are turned
    by the angle sum_{s <= t} pi tanh(.) dt_s on the first `rotary_fraction` of their channels: with it the real
    recurrence is a complex one whose eigenvalues depend on the token.

    C, B and x are this layer's query, key and value, so it gets the aids of SKA's recipe as its peers do;
    `mamba3_as_published` gives the layer without them. dt and the trapezoid weight are its write gate.

    Args:
        hidden_size: width d of the tokens.
        state_size: columns of the state; B and C have this width.
        head_dim: rows of a head's state; it must divide expand * hidden_size.
        expand: inner width over `hidden_size`.
        conv_kernel, key_delay, tied_start: the short convolution on C, B and x, see `QueryKeyValue`.
        output_norm: RMSNorm of what each head reads, before the gate.
        rotary_fraction: share of B's and C's channels that turn, in (0, 1].
        chunk_size: tokens computed at once; it changes speed and memory, not the function.
        norm_eps: epsilon of the norms.

    Raises:
        ValueError: the sizes do not fit.
    """

    # Weight decay would pull these towards values nobody chose: steps to softplus(0), the skip and the biases to 0.
    _no_weight_decay = ("dt_bias", "D", "B_bias", "C_bias")

    def __init__(
        self,
        hidden_size: int,
        *,
        state_size: int = 64,
        head_dim: int = 64,
        expand: int = 2,
        conv_kernel: int | None = 4,
        key_delay: int = 1,
        tied_start: bool = True,
        output_norm: bool = True,
        rotary_fraction: float = 0.5,
        chunk_size: int = 64,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        inner = expand * hidden_size
        if inner % head_dim:
            raise ValueError(
                f"head_dim = {head_dim} does not divide expand * hidden_size = {inner}: set head_dim to a divisor of "
                f"it, such as {math.gcd(inner, head_dim)}"
            )
        self.angles = int(state_size * rotary_fraction) // 2
        if not 0 < rotary_fraction <= 1 or self.angles < 1:
            raise ValueError(
                f"rotary_fraction = {rotary_fraction} of state_size = {state_size} channels must be a pair at least "
                "and all of them at most"
            )
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        self.hidden_size = hidden_size
        self.heads, self.head_dim, self.state_size, self.chunk_size = (
            inner // head_dim,
            head_dim,
            state_size,
            chunk_size,
        )
        self.qkv = QueryKeyValue(
            hidden_size,
            num_heads=1,
            key_dim=state_size,
            value_dim=inner,
            conv_kernel=conv_kernel,
            key_delay=key_delay,
            tied_start=tied_start,
        )
        self.sizes = [inner, self.heads, self.heads, self.heads, self.angles]
        self.in_proj = nn.Linear(hidden_size, sum(self.sizes), bias=False)  # z, dt, A, the trapezoid weight, angles
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.B_norm = nn.RMSNorm(state_size, eps=norm_eps)
        self.C_norm = nn.RMSNorm(state_size, eps=norm_eps)
        self.B_bias = nn.Parameter(torch.empty(self.heads, state_size))
        self.C_bias = nn.Parameter(torch.empty(self.heads, state_size))
        self.norm = nn.RMSNorm(head_dim, eps=norm_eps) if output_norm else None
        self.out_proj = nn.Linear(inner, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published start of dt_bias, D and the biases; the other parameters start as their modules start them."""
        start_steps(self.dt_bias)
        for ones in (self.D, self.B_bias, self.C_bias):
            nn.init.ones_(ones)

    def forward(
        self,
        hidden_states: Tensor,
        state: Mamba3State | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
    ) -> tuple[Tensor, Mamba3State | None]:
        """Mix along time; see `SequenceMixer.forward`. Everything between the projections is float32 or float64."""
        self.check_inputs(hidden_states, state, cu_seqlens)
        C, B, x, tail = self.qkv(
            hidden_states,
            None if state is None else state.convolution,
            cu_seqlens=cu_seqlens,
            output_state=output_state,
        )
        z, *controls = self.in_proj(hidden_states).split(self.sizes, dim=-1)
        with torch.autocast(hidden_states.device.type, enabled=False):
            tokens = self._tokens(C, B, x, *controls)
            lengths = sequence_lengths(hidden_states, cu_seqlens)
            before = self.init_state(len(lengths), device=x.device, dtype=x.dtype) if state is None else state
            rows = lengths, before.angle, before.ssm, before.previous_b, before.previous_x
            read, *after = run_by_length(self._scan, rows, tokens, cu_seqlens)
        mixed = self._projected_out(read, self._heads(x), z)
        return mixed, None if tail is None else Mamba3State(tail, *after)

    def advance(self, hidden_states: Tensor, state: Mamba3State) -> Tensor:
        """The recurrence itself, in place; see `SequenceMixer.advance`."""
        hidden_states = hidden_states.squeeze(1)
        C, B, x = self.qkv.step(hidden_states, state.convolution)
        z, *controls = self.in_proj(hidden_states).split(self.sizes, dim=-1)
        with torch.autocast(hidden_states.device.type, enabled=False):
            C, B, x, now, before, log_decay, turn = self._tokens(C, B, x, *controls)
            state.angle.copy_(_wrapped(state.angle + turn))
            C, B = _turned(C, state.angle), _turned(B, state.angle)
            pending = state.previous_x * before[..., None]
            state.ssm.addcmul_(pending[..., None], state.previous_b[..., None, :])
            state.ssm.mul_(log_decay.exp()[..., None, None])
            state.ssm.addcmul_((x * now[..., None])[..., None], B[..., None, :])
            state.previous_b.copy_(B)
            state.previous_x.copy_(x)
            read = (state.ssm.to(C.dtype) @ C[..., None]).squeeze(-1)  # [N, heads, head_dim]
        return self._projected_out(read, x, z).unsqueeze(1)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Mamba3State:
        """Zeros, on the parameters' device and in their dtype unless told; all but `convolution` float32 at least."""
        weight = self.out_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        sizes = ((self.angles,), (self.head_dim, self.state_size), (self.state_size,), (self.head_dim,))
        return Mamba3State(
            self.qkv.init_tail(batch_size, device=device, dtype=dtype),
            *(
                torch.zeros(
                    batch_size, self.heads, *size, device=device, dtype=torch.promote_types(dtype, torch.float32)
                )
                for size in sizes
            ),
        )

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state: the same after any `length`."""
        return self.init_state(1, device="meta").nbytes

    def _heads(self, x: Tensor) -> Tensor:
        return precise(x).squeeze(-2).unflatten(-1, (self.heads, self.head_dim))

    def _tokens(
        self, C: Tensor, B: Tensor, x: Tensor, dt: Tensor, rate: Tensor, trapezoid: Tensor, angle: Tensor
    ) -> tuple[Tensor, ...]:
        """What the recurrence reads of each token, float32 or finer.

        C and B [..., H, N] not yet turned, x [..., H, P], the weights of this token's and of the last one's pair
        (the latter before the decay) and the logarithm of the decay, [..., H] each, and the turn [..., H, angles].
        """
        C, B = (precise(vectors).squeeze(-2) for vectors in (C, B))
        dtype = C.dtype
        C = _normalised(C, self.C_norm).unsqueeze(-2) + self.C_bias.to(dtype)
        B = _normalised(B, self.B_norm).unsqueeze(-2) + self.B_bias.to(dtype)
        dt = F.softplus(dt.to(dtype) + self.dt_bias.to(dtype))
        log_decay = -F.softplus(rate.to(dtype)).clamp_min(RATE_FLOOR) * dt
        now = torch.sigmoid(trapezoid.to(dtype)) * dt
        turn = math.pi * torch.tanh(angle.to(dtype)).unsqueeze(-2) * dt.unsqueeze(-1)
        return C, B, self._heads(x), now, dt - now, log_decay, turn

    def _scan(self, lengths: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What N sequences of `lengths` [N] tokens read, [N, T, H, P], and the state's tensors after that.

        `inputs` are those tensors before, and the tokens [N, T, H, ...]. A token of dt = 0, as padding is, neither
        decays nor turns nor writes.
        """
        C, B, x, now, before, log_decay, turn = inputs[4:]
        angle, memory, previous_b, previous_x = (tensor.to(x.dtype) for tensor in inputs[:4])
        rows, length = x.shape[:2]
        if length == 0:
            return x, angle.clone(), memory.clone(), previous_b.clone(), previous_x.clone()
        total = turn.to(accumulator_dtype(turn.device)).cumsum(1) + angle.unsqueeze(1)
        angles = _wrapped(total).to(x.dtype)
        C, B = _turned(C, angles), _turned(B, angles)
        # The first token writes the pair that was pending; every other pair is written with both of its weights at
        # once, by its own token and the next one. What a token itself reads lacks the second.
        memory = memory + (previous_x * before[:, 0, :, None])[..., None] * previous_b[..., None, :]
        both = now + F.pad(before[:, 1:], (0, 0, 0, 1))
        weights = torch.stack([now, both, log_decay], dim=-1)
        read, memory = scan_chunks(trapezoid_chunk, memory, (C, B, x, weights), self.chunk_size)
        places = (lengths - 1).clamp_min(0)
        row = torch.arange(rows, device=x.device)
        read_any = (lengths > 0).view(-1, 1, 1)
        ends = (torch.where(read_any, new[row, places], old) for new, old in ((B, previous_b), (x, previous_x)))
        return read, angles[:, -1].clone(), memory, *ends

    def _projected_out(self, read: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """y = read + D x of each head [..., H, P], normalised, gated by z [..., H P] and projected to [..., d]."""
        y = torch.addcmul(read, x, self.D.to(x.dtype)[:, None])
        if self.norm is not None:
            y = _normalised(y, self.norm)
        y = y.flatten(-2) * F.silu(precise(z))
        return self.out_proj(y.to(self.out_proj.weight.dtype))


def mamba3_as_published(hidden_size: int, **settings: Any) -> Mamba3:
    """`Mamba3` without aids: no convolution, B and C started apart, no norm before the gate."""
    return Mamba3(hidden_size, conv_kernel=None, tied_start=False, output_norm=False, **settings)


def trapezoid_chunk(memory: Tensor, C: Tensor, B: Tensor, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """y_t = now_t (C_t . B_t) x_t + sum_{s < t} exp(sum_{s < u <= t} log_decay_u) both_s (C_t . B_s) x_s.

    See `chunks.Chunk`.

    Args:
        memory: what tokens before have written, [G, P, N].
        C, B: [G, S, N].
        x: [G, S, P].
        weights: now and both, the weights of a pair for its own token and for all later ones, and log_decay, at most
            0: [G, S, 3].
    """
    now, both, log_decay = weights.split(1, dim=-1)
    # Only differences inside a chunk are used, so the precision does not depend on how far the sequence has run.
    decay = log_decay.cumsum(-2)  # [G, S, 1]
    not_before = torch.full((decay.shape[1],) * 2, -torch.inf, dtype=x.dtype, device=x.device).triu()
    between = (decay + not_before).sub_(decay.mT).exp_()  # [G, S, S], exponents <= 0
    written = x * both
    own = now * (C * B).sum(-1, keepdim=True) * x
    read = torch.baddbmm(torch.addcmul(own, C @ memory.mT, decay.exp()), C @ B.mT * between, written)
    until_end = torch.exp(decay[:, -1:] - decay)
    return read, torch.baddbmm(memory * decay[:, -1:].exp(), (written * until_end).mT, B)


def _normalised(vectors: Tensor, norm: nn.RMSNorm) -> Tensor:
    """The RMSNorm in the vectors' own dtype, which may be finer than its weight's; what a tool put there, as it is."""
    if type(norm) is not nn.RMSNorm:
        return norm(vectors.to(norm_weight(norm).dtype)).to(vectors.dtype)
    return F.rms_norm(vectors, norm.normalized_shape, norm.weight.to(vectors.dtype), norm.eps)


def _turned(vectors: Tensor, angle: Tensor) -> Tensor:
    """Channel pairs (i, i + A) of the first 2 A channels of [..., H, N], turned by the angles [..., H, A]."""
    count = angle.shape[-1]
    cos, sin = angle.cos(), angle.sin()
    left, right, rest = vectors.split([count, count, vectors.shape[-1] - 2 * count], dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin, rest], dim=-1)


def _wrapped(angle: Tensor) -> Tensor:
    """The angle in [-pi, pi), so that a long sequence loses no digits of it."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
