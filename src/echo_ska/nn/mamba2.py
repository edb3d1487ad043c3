"""Mamba-2 in pure PyTorch: a selective state space whose parallel form is made of matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.algebra.record import TensorRecord
from echo_ska.nn.aids import norm_weight
from echo_ska.nn.convolution import ShortConvolution
from echo_ska.nn.fla import kernel_for
from echo_ska.nn.initialization import start_as, start_steps
from echo_ska.nn.mixer import MixerState, SequenceMixer
from echo_ska.nn.packing import run_by_length
from echo_ska.nn.parts import last_sequence, last_tokens
from echo_ska.nn.simple_gla import SIMPLE_GLA, simple_gla_scan

# Measured on one CPU core, forward and backward, at T = 64 and at T = 4,096.
DEFAULT_CHUNK_SIZE = 64


@dataclass
class Mamba2State(MixerState):
    """What a Mamba-2 layer carries from one token to the next, N rows (one a sequence).

    Attributes:
        convolution: [N, conv_kernel - 1, channels], the last inputs of the convolution, oldest first.
        ssm: [N, heads, head_dim, state_size], float32 (float64 in a float64 model).
    """

    convolution: Tensor
    ssm: Tensor


class Mamba2(SequenceMixer):
    """The Mamba-2 block of Dao & Gu 2024 (arXiv 2405.21060), with one B/C group.

    Per head, with input x_t [head_dim], B_t and C_t [state_size], step dt_t = softplus(. + dt_bias) and rate
    A = -exp(A_log):

        h_t = exp(A dt_t) h_{t-1} + dt_t x_t B_t^T        y_t = h_t C_t + D x_t

    x, B, C come from a linear projection, a short convolution and SiLU; y is gated, normalised and projected back.

    Args:
        hidden_size: width d of the tokens.
        state_size: columns of the state; B and C have this width.
        head_dim: rows of the state; it must divide expand * hidden_size.
        expand: inner width over `hidden_size`.
        conv_kernel: taps of the short convolution.
        chunk_size: tokens the PyTorch scan computes at once (section 6 of the paper); it changes speed and memory, not
            the function. On a GPU flash-linear-attention's kernels scan, where they are installed.
            None takes 64, the fastest measured on a CPU.
        norm_eps: epsilon of the gated RMSNorm.

    Raises:
        ValueError: `head_dim` does not divide expand * hidden_size.
    """

    # Weight decay would pull these towards values nobody chose: rates to 1, steps to softplus(0), the skip to 0.
    _no_weight_decay = ("A_log", "dt_bias", "D")

    def __init__(
        self,
        hidden_size: int,
        *,
        state_size: int = 64,
        head_dim: int = 64,
        expand: int = 2,
        conv_kernel: int = 4,
        chunk_size: int | None = None,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        inner_size = expand * hidden_size
        if inner_size % head_dim:
            raise ValueError(
                f"head_dim = {head_dim} does not divide expand * hidden_size = {expand} * {hidden_size} = "
                f"{inner_size}; set head_dim to a divisor of {inner_size}, such as {math.gcd(inner_size, head_dim)}"
            )
        self.hidden_size = hidden_size
        self.heads = inner_size // head_dim
        self.head_dim = head_dim
        self.state_size = state_size
        self.inner_size = inner_size
        self.chunk_size = DEFAULT_CHUNK_SIZE if chunk_size is None else chunk_size

        channels = inner_size + 2 * state_size  # x, B, C
        self.in_proj = nn.Linear(hidden_size, inner_size + channels + self.heads, bias=False)  # z, (x, B, C), dt
        self.convolution = ShortConvolution(channels, conv_kernel, bias=True, delay=None)
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = nn.RMSNorm(inner_size, eps=norm_eps)
        self.out_proj = nn.Linear(inner_size, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published start of A_log, dt_bias and D; the other parameters start as their modules start them."""
        # Rates uniform in [1, 16]: with the steps below, a head's memory 1 / (A dt) is between 0.6 and 1,000 tokens.
        start_as(self.A_log, torch.empty_like(self.A_log).uniform_(1, 16).log())
        start_steps(self.dt_bias)
        # A head starts by passing its input through, so gradients flow before its state holds anything of use.
        start_as(self.D, torch.ones_like(self.D))

    def forward(
        self,
        hidden_states: Tensor,
        state: Mamba2State | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
    ) -> tuple[Tensor, Mamba2State | None]:
        """Mix along time; see `SequenceMixer.forward`. Everything between the projections is float32 or float64."""
        self.check_inputs(hidden_states, state, cu_seqlens)
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        z, xBC, dt = self.in_proj(hidden_states).split([self.inner_size, self.convolution.channels, self.heads], dim=-1)
        with torch.autocast(hidden_states.device.type, enabled=False):
            tail = None if state is None else state.convolution
            xBC = xBC.to(dtype)
            if self.exchange is not None and self.history:
                tail = self.exchange.inputs_before(last_tokens(xBC, self.history), tail, cu_seqlens)
            xBC, tail = self.convolution(
                xBC,
                tail,
                cu_seqlens=cu_seqlens,
                output_state=output_state,
            )
            x, B, C = F.silu(xBC).split([self.inner_size, self.state_size, self.state_size], dim=-1)
            x = x.unflatten(-1, (self.heads, self.head_dim))  # [B, T, heads, head_dim]
            dt = F.softplus(dt.to(dtype) + self.dt_bias.to(dtype))  # [B, T, heads]
            A = -torch.exp(self.A_log.to(dtype))
            before = None if state is None else state.ssm
            if self.exchange is not None:
                mine = [last_sequence(tokens, cu_seqlens) for tokens in (x, dt, B)]
                own = part_state(mine[0], mine[1], A, mine[2])
                parts_before = self.exchange.summary_before(own, cu_seqlens)
                before = parts_before.ssm if before is None else parts_before.after(before)
            # On a GPU by maintained kernels, where they are installed; they know no float64.
            kernel = kernel_for(SIMPLE_GLA, x) if dtype == torch.float32 else None
            if kernel is not None:
                y, ssm = simple_gla_scan(
                    kernel, x, dt, A, B, C, before, cu_seqlens=cu_seqlens, output_state=output_state
                )
            else:
                y, ssm = state_space_scan(
                    x,
                    dt,
                    A,
                    B,
                    C,
                    before,
                    chunk_size=self.chunk_size,
                    cu_seqlens=cu_seqlens,
                    output_state=output_state,
                )
            y = self._gated_norm((x * self.D.to(dtype)[:, None]).add_(y).flatten(2), z)  # [B, T, inner_size]
        y = self.out_proj(y.to(hidden_states.dtype))
        if tail is None or ssm is None:  # not asked for
            return y, None
        return y, Mamba2State(tail.to(self.convolution.weight.dtype), ssm)

    def advance(self, hidden_states: Tensor, state: Mamba2State) -> Tensor:
        """The recurrence itself, in place; see `SequenceMixer.advance`."""
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        projected = self.in_proj(hidden_states.squeeze(1))  # [N, ...]
        z, xBC, dt = projected.split([self.inner_size, self.convolution.channels, self.heads], dim=-1)
        with torch.autocast(hidden_states.device.type, enabled=False):
            xBC = F.silu(self.convolution.step(xBC.to(dtype), state.convolution))
            x, B, C = xBC.split([self.inner_size, self.state_size, self.state_size], dim=-1)
            x = x.unflatten(-1, (self.heads, self.head_dim))  # [N, heads, head_dim]
            dt = F.softplus(dt.to(dtype) + self.dt_bias.to(dtype)).unsqueeze(-1)  # [N, heads, 1]
            decay = torch.exp(dt * -torch.exp(self.A_log.to(dtype))[:, None]).unsqueeze(-1)
            state.ssm.mul_(decay).addcmul_((x * dt).unsqueeze(-1), B[:, None, None])
            read = torch.bmm(state.ssm.flatten(1, 2).to(dtype), C.unsqueeze(-1)).view_as(x)
            y = self._gated_norm(torch.addcmul(read, x, self.D.to(dtype)[:, None]).flatten(1), z)
        return self.out_proj(y.to(hidden_states.dtype)).unsqueeze(1)

    has_summary = True

    @property
    def history(self) -> int:
        return self.convolution.kernel_size - 1

    def _gated_norm(self, y: Tensor, z: Tensor) -> Tensor:
        y = y * F.silu(z.to(y.dtype))
        if type(self.norm) is not nn.RMSNorm:  # a tool has put its own there
            return self.norm(y.to(norm_weight(self.norm).dtype)).to(y.dtype)
        power = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square() / self.inner_size
        return y * torch.rsqrt(power + self.norm.eps) * self.norm.weight.to(y.dtype)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Mamba2State:
        """Zeros, on the parameters' device and in their dtype unless told; the scan's state is float32 at least."""
        weight = self.convolution.weight
        device = weight.device if device is None else device
        dtype = weight.dtype if dtype is None else dtype
        history = self.convolution.kernel_size - 1
        return Mamba2State(
            torch.zeros(batch_size, history, self.convolution.channels, device=device, dtype=dtype),
            torch.zeros(
                batch_size,
                self.heads,
                self.head_dim,
                self.state_size,
                device=device,
                dtype=torch.promote_types(dtype, torch.float32),
            ),
        )

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state: the same after any `length`."""
        return self.init_state(1, device="meta").nbytes


@dataclass
class DecayingState(TensorRecord):
    """What a part of a sequence does to the state: h -> exp(log_decay) h + ssm.

    Attributes:
        log_decay: the sum of A dt over the part, [N, heads].
        ssm: the part's end state if it starts from zeros, [N, heads, head_dim, state_size].
    """

    log_decay: Tensor
    ssm: Tensor

    def after(self, before: Tensor) -> Tensor:
        """The state after the part that starts from `before`."""
        return torch.addcmul(self.ssm, torch.exp(self.log_decay)[..., None, None], before.to(self.ssm.dtype))

    def __add__(self, other: DecayingState) -> DecayingState:
        """Of this part followed by `other`."""
        return DecayingState(self.log_decay + other.log_decay, other.after(self.ssm))


def part_state(x: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> DecayingState:
    """What T tokens do to the state, in one product of matrices; the arguments are those of `state_space_scan`."""
    steps = dt * A  # [B, T, H]
    # Summed from the end: differences of sums from the start would round by the length of the part.
    to_end = steps.flip(1).cumsum(1).flip(1) - steps
    written = x * (dt * torch.exp(to_end))[..., None]  # [B, T, H, P]
    ssm = (written.flatten(2).mT @ B).unflatten(1, written.shape[2:])
    return DecayingState(steps.sum(1), ssm)


def state_space_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None = None,
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    cu_seqlens: Tensor | None = None,
    output_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """h_t = exp(A dt_t) h_{t-1} + dt_t x_t B_t^T and y_t = h_t C_t for all t, by chunks (section 6 of the paper).

    Args:
        x: [B, T, H, P].
        dt: [B, T, H], positive.
        A: [H], negative.
        B: [B, T, N], shared by the heads.
        C: [B, T, N].
        state: [rows, H, P, N] before the first token, or None for zeros.
        chunk_size: tokens of a chunk.
        cu_seqlens: boundaries of packed sequences; then B = 1 and the state has a row per sequence.
        output_state: whether to return the state after the last token.

    Returns:
        y [B, T, H, P] and the final state [rows, H, P, N] or None.
    """
    if cu_seqlens is not None:

        def scan(*inputs: Tensor) -> tuple[Tensor, ...]:
            *before, x, dt, B, C = inputs
            y, final = state_space_scan(x, dt, A, B, C, *before, chunk_size=chunk_size, output_state=output_state)
            return (y,) if final is None else (y, final)

        y, *finals = run_by_length(scan, () if state is None else (state,), (x, dt, B, C), cu_seqlens)
        return y, finals[0] if output_state else None

    length = x.shape[1]
    if length == 1:
        y, after = _step(x, dt, A, B, C, state)
        return y, after if output_state else None
    chunk_size = max(1, min(chunk_size, length))
    padding = -length % chunk_size
    if padding:  # a token with dt = 0 neither decays nor writes
        x, dt, B, C = (F.pad(value, (0, 0) * (value.dim() - 2) + (0, padding)) for value in (x, dt, B, C))
    chunks = x.shape[1] // chunk_size
    x, dt, B, C = (value.unflatten(1, (chunks, chunk_size)) for value in (x, dt, B, C))
    y, final = _scan_chunks(x, dt, A, B, C, state, output_state)
    return y.flatten(1, 2)[:, :length], final


def _step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The recurrence itself, for one token."""
    x, dt, B, C = x[:, 0], dt[:, 0], B[:, 0], C[:, 0]  # [B, H, P], [B, H], [B, N], [B, N]
    write = (x * dt[..., None])[..., None] * B[:, None, None]  # [B, H, P, N]
    state = torch.zeros_like(write) if state is None else state.to(write.dtype)
    state = torch.addcmul(write, torch.exp(dt * A)[..., None, None], state)
    return (state @ C[:, None, :, None]).squeeze(-1)[:, None], state


def _scan_chunks(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None,
    output_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """The scan of R rows of K chunks of Q tokens.

    x [R, K, Q, H, P], dt [R, K, Q, H], A [H], B and C [R, K, Q, N]. Returns y as x and the final state.
    """
    _, chunks, size, heads, width = x.shape
    # Decay from the chunk's start up to and with a token. Only differences of it inside the chunk are used, so
    # the precision does not depend on how far the sequence has run, and every exponent is at most zero.
    decay = (dt * A).cumsum(2)  # [R, K, Q, H]
    written = x * dt[..., None]  # [R, K, Q, H, P]

    # Within a chunk the recurrence is attention without softmax: (C_i . B_j) times the decay from j to i.
    future = torch.full((size, size), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
    scores = C @ B.transpose(-1, -2)  # [R, K, Q, Q]
    rows = decay.movedim(-1, 2)  # [R, K, H, Q]
    # In place as far as autograd allows: fresh memory costs more here than arithmetic. exp(-inf) is the causal mask.
    between = (rows[..., :, None] + future).add_(-rows[..., None, :]).exp_()  # [R, K, H, Q, Q]
    y = ((scores[:, :, None] * between) @ written.transpose(2, 3)).transpose(2, 3)  # [R, K, Q, H, P]
    if chunks == 1 and state is None and not output_state:
        return y, None

    # Across chunks: what each one adds to the state by its end, the state each one starts from, and its reading.
    to_end = torch.exp(decay[:, :, -1:] - decay)  # [R, K, Q, H]
    writes = (written * to_end[..., None]).flatten(3).transpose(-1, -2) @ B  # [R, K, H P, N]
    writes = writes.unflatten(2, (heads, width))
    starts, final = _carry(writes, torch.exp(decay[:, :, -1])[..., None, None], state)
    carried = (C @ starts.flatten(2, 3).transpose(-1, -2)).unflatten(-1, (heads, width))  # [R, K, Q, H, P]
    return torch.addcmul(y, carried, torch.exp(decay)[..., None]), final if output_state else None


def _carry(writes: Tensor, decays: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states before each of the chunks [R, K, H, P, N] and after the last one of each row [R, H, P, N]."""
    state = writes.new_zeros(len(writes), *writes.shape[2:]) if state is None else state.to(writes.dtype)
    if not writes.shape[1]:  # no token: the state itself, but never the caller's memory
        return torch.empty_like(writes), state.clone()
    starts, final = _Carry.apply(writes, decays, state)
    return starts, final


class _Carry(torch.autograd.Function):
    """s_{k+1} = decay_k s_k + write_k over chunks; its adjoint is the same recurrence from the other end.

    Left to autograd, the loop would keep several nodes of the graph and several fresh tensors a chunk.
    """

    @staticmethod
    def forward(ctx: Any, writes: Tensor, decays: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        starts, final = _recurrence(writes, decays, state, range(writes.shape[1]))
        ctx.save_for_backward(decays, starts)
        return starts, final

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decays, starts = ctx.saved_tensors
        of_starts, of_final = gradients
        of_writes, of_state = _recurrence(of_starts, decays, of_final, range(starts.shape[1] - 1, -1, -1))
        return of_writes, (of_writes * starts).sum((-2, -1), keepdim=True), of_state


def _recurrence(added: Tensor, decays: Tensor, state: Tensor, order: range) -> tuple[Tensor, Tensor]:
    """The states before each chunk, in the given order of chunks, and the one after the last."""
    before = torch.empty_like(added)
    for chunk in order:
        before[:, chunk] = state
        state = torch.addcmul(added[:, chunk], decays[:, chunk], state)
    return before, state
