"""What the SKA heads of a model hold and do with an input: their spectra, ridges, gates and blends, measured.

Everything comes from the layers themselves: a hook on each SKA layer takes what reaches it and asks its own
`head_inputs`, which its `forward` uses too; the sums are `SufficientStatistics`, the operator is `KoopmanOperator`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from echo_ska.algebra import KoopmanOperator, RidgeFactor, SufficientStatistics
from echo_ska.models import EchoForCausalLM
from echo_ska.models.eval_mode import in_eval_mode
from echo_ska.models.segments import SEGMENT_LENGTH, read_in_segments
from echo_ska.nn import SpectralKoopmanAttention
from echo_ska.ops.arguments import RIDGE_FLOOR

NEAR_THE_FLOOR = 10.0
"""A ridge below so many times the floor is warned of: gradients through float32 tokens keep one to three digits there
(docs/numerics.md)."""

FEW_DIGITS = 2.0
"""Digits that a float32 solve keeps; fewer are warned of."""

PIECE = 4096
"""Tokens whose statistics are summed at a time, in float64."""


@dataclass(frozen=True, eq=False)
class LayerInspection:
    """One SKA layer, H heads of rank r, after each of N counts of tokens; all tensors on the CPU.

    What depends on the position is that of the statistics of ALL tokens so far. Under a refresh interval a token reads
    those that were frozen before its chunk, and a layer that is not causal reads the last alone.

    Attributes:
        layer: its place in the model, from 0.
        power: K of the filter; at 0 there is no operator.
        reading: which tokens a token reads, in words.
        positions: tokens read at each measurement, ascending, int64 [N]; the last is the whole input.
        ridge: [H], float64, as are all that follow.
        gain: [H], or None at power 0.
        scale: [H], or None where an output norm stands in its place.
        gram_eigenvalues: of G, without the ridge, ascending, none below 0, [N, H, r].
        operator_eigenvalues: of A = L^-1 M L^-T, without the gain, by falling modulus, complex128 [N, H, r]; or None.
        operator_norm: ||A||_2, [N, H], below 1 always; or None.
        write_weight: float32 [T, H] in [0, 1]; None where the layer has no gate and stores every token whole.
        blend: a_t, float32 [T, H] in [0, 1], the share of the filtered read; None where nothing is blended.
        statistics: of the whole input, one row.
    """

    layer: int
    power: int
    reading: str
    positions: Tensor
    ridge: Tensor
    gain: Tensor | None
    scale: Tensor | None
    gram_eigenvalues: Tensor
    operator_eigenvalues: Tensor | None
    operator_norm: Tensor | None
    write_weight: Tensor | None
    blend: Tensor | None
    statistics: SufficientStatistics

    @property
    def num_heads(self) -> int:
        """H."""
        return self.ridge.shape[0]

    @property
    def rank(self) -> int:
        """r."""
        return self.gram_eigenvalues.shape[-1]

    @property
    def effective_rank(self) -> Tensor:
        """Sum of s / (s + ridge) over the eigenvalues s of G, [N, H]: directions that outweigh the ridge, 0 to r."""
        return (self.gram_eigenvalues / (self.gram_eigenvalues + self.ridge[:, None])).sum(-1)

    @property
    def condition(self) -> Tensor:
        """Condition number of G + ridge I, [N, H]."""
        return self.condition_at(self.ridge)

    def condition_at(self, ridge: Tensor | float) -> Tensor:
        """Condition number that G + ridge I would have with another ridge, scalar or [H], [N, H]."""
        return (self.gram_eigenvalues[..., -1] + ridge) / (self.gram_eigenvalues[..., 0] + ridge)

    @property
    def float32_digits(self) -> Tensor:
        """Decimal digits that a solve by G + ridge I in float32 keeps after the whole input, [H]: -log10(cond eps)."""
        return -(self.condition[-1] * torch.finfo(torch.float32).eps).log10()

    def warnings(self) -> list[str]:
        """A sentence for each head that is near what float32 can honour (docs/numerics.md)."""
        found = []
        for head in range(self.num_heads):
            place, ridge = f"layer {self.layer}, head {head}", float(self.ridge[head])
            # The layer's ridge is float32, which does not hold the floor exactly.
            if ridge <= RIDGE_FLOOR * 1.001:
                found.append(
                    f"{place}: its ridge stands at the floor, {RIDGE_FLOOR:g}, where gradients through float32 "
                    "tokens may keep no digit (a CPU takes float64 tokens, which take longer): start it higher "
                    "(initial_ridge)"
                )
            elif ridge < NEAR_THE_FLOOR * RIDGE_FLOOR:
                found.append(
                    f"{place}: its ridge {ridge:.2g} is near the floor, {RIDGE_FLOOR:g}: gradients through float32 "
                    "tokens keep one to three digits (a CPU takes float64 tokens, which take longer)"
                )
            if (digits := float(self.float32_digits[head])) < FEW_DIGITS:
                kept = "no digit" if digits < 0.5 else "about one digit" if digits < 1.5 else "less than two digits"
                found.append(
                    f"{place}: the condition number {float(self.condition[-1, head]):.1e} leaves {kept} to a float32 "
                    "solve: keep its sums in float64, as they are but on devices without it"
                )
        return found


@dataclass(frozen=True, eq=False)
class Inspection:
    """What `inspect_model` found.

    Attributes:
        input_ids: the tokens read, int64 [T].
        layers: one entry for each SKA layer, in the model's order.
    """

    input_ids: Tensor
    layers: list[LayerInspection]

    def warnings(self) -> list[str]:
        """Those of all layers."""
        return [warning for layer in self.layers for warning in layer.warnings()]


def measured_positions(length: int) -> list[int]:
    """Two counts of tokens an octave, 1, 2, 3, 4, 6, 8, 11, 16, ... below `length`, and `length` itself."""
    steps = range(2 * math.ceil(math.log2(length)) + 1)
    return sorted({min(length, round(2 ** (step / 2))) for step in steps} | {length})


@torch.no_grad()
def inspect_model(
    model: EchoForCausalLM,
    input_ids: Tensor,
    *,
    positions: Sequence[int] | None = None,
    segment_length: int = SEGMENT_LENGTH,
    progress: Callable[[int], None] | None = None,
) -> Inspection:
    """Let a model read tokens, and measure its SKA layers meanwhile.

    It reads in segments that hand its state on, so that activations take memory for one segment, whatever the length;
    kept are the tokens and 4 bytes for each token, head and gate or blend. Where a layer keeps no state (the paper's
    preset), all tokens are read in one call. The model is in eval mode meanwhile and is not changed.

    Args:
        model: with at least one SKA layer.
        input_ids: [T] or [1, T] integers, T >= 1.
        positions: counts of tokens after which to measure, each in 1 ... T; T itself is always added. None chooses
            two an octave.
        segment_length: tokens in a forward call, at least 2; a few more where one would be left over.
        progress: called with the number of tokens read, after each segment.

    Raises:
        ValueError: no SKA layer, no or more than one row of tokens, or a number out of range.
        ArithmeticError: a Gram matrix plus the ridge is not positive definite.
    """
    row = input_ids.squeeze(0) if input_ids.dim() == 2 and input_ids.shape[0] == 1 else input_ids
    if row.dim() != 1 or len(row) == 0:
        raise ValueError(f"input_ids must be one row of at least one token, got {list(input_ids.shape)}")
    layers = {
        place: mixer for place, mixer in enumerate(model.model.mixers) if isinstance(mixer, SpectralKoopmanAttention)
    }
    if not layers:
        kinds = ", ".join(sorted(set(model.config.layer_types)))
        raise ValueError(f"the model has no SKA layer to inspect: its layers are {kinds}")
    if segment_length < 2:
        raise ValueError(f"segment_length must be at least 2, got {segment_length}")
    if not model.has_state:
        segment_length = max(2, len(row))
    while len(row) > 1 and len(row) % segment_length == 1:
        segment_length += 1  # a single token would be decoded in place, past the layers' forward
    asked = measured_positions(len(row)) if positions is None else sorted({*positions, len(row)})
    if asked[0] < 1 or asked[-1] > len(row):
        raise ValueError(f"positions must be in 1 ... {len(row)}, the tokens there are, got {asked[0]} ... {asked[-1]}")

    recorders = [_Recorder(place, mixer, asked) for place, mixer in layers.items()]
    hooks = [recorder.mixer.register_forward_pre_hook(recorder.see, with_kwargs=True) for recorder in recorders]
    try:
        ids = row.to(model.device, torch.int64)[None]
        with in_eval_mode(model):
            for begin, _ in read_in_segments(model.model, ids, segment_length, use_cache=model.has_state):
                if progress is not None:
                    progress(min(len(row), begin + segment_length))
    finally:
        for hook in hooks:
            hook.remove()
    return Inspection(row.cpu(), [recorder.result() for recorder in recorders])


class _Recorder:
    """Sees what reaches one SKA layer and sums it up."""

    def __init__(self, place: int, mixer: SpectralKoopmanAttention, positions: Sequence[int]) -> None:
        self.place, self.mixer, self.positions = place, mixer, positions
        self.statistics = SufficientStatistics.empty(
            1, mixer.num_heads, mixer.rank, mixer.head_dim, device=mixer.raw_ridge.device
        )
        self.read = 0
        self.weights: list[Tensor] = []
        self.blends: list[Tensor] = []
        self.gram_spectra: list[Tensor] = []
        self.operator_spectra: list[Tensor] = []
        self.norms: list[Tensor] = []

    def see(self, module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """The hook: one segment on its way into the layer."""
        hidden_states, state = arguments
        inputs, _ = self.mixer.head_inputs(hidden_states, None if state is None else state.convolution)
        for kept, found in ((self.weights, inputs.write_weight), (self.blends, inputs.blend)):
            if found is not None:
                kept.append(found[0].float().cpu())
        time = hidden_states.shape[1]
        for begin, end in _pieces(self.read, self.read + time, self.positions):
            part = slice(begin - self.read, end - self.read)
            weight = None if inputs.write_weight is None else inputs.write_weight[:, part]
            piece = SufficientStatistics.from_tokens(inputs.key[:, part], inputs.value[:, part], weight)
            self.statistics = self.statistics + piece
            if end in self.positions:
                self._measure()
        self.read += time

    def _measure(self) -> None:
        # On the CPU and in float64 always: some devices have neither these solvers nor that dtype.
        gram, lag_moment = _number(self.statistics.gram[0]), _number(self.statistics.lag_moment[0])
        self.gram_spectra.append(torch.linalg.eigvalsh(gram).clamp_min(0))
        if self.mixer.power > 0:
            factor = RidgeFactor.of(gram, _number(self.mixer.ridge)[:, None, None]).require_success()
            operator = KoopmanOperator.of(factor, lag_moment)
            eigenvalues = operator.eigenvalues()
            order = eigenvalues.abs().argsort(dim=-1, descending=True)
            self.operator_spectra.append(eigenvalues.gather(-1, order))
            self.norms.append(torch.linalg.matrix_norm(operator.matrix, ord=2))

    def result(self) -> LayerInspection:
        """All that was seen."""
        mixer = self.mixer
        return LayerInspection(
            layer=self.place,
            power=mixer.power,
            reading=_reading(mixer),
            positions=torch.tensor(self.positions, dtype=torch.int64),
            ridge=_number(mixer.ridge),
            gain=None if mixer.gain is None else _number(mixer.gain),
            scale=None if mixer.scale is None else _number(mixer.scale),
            gram_eigenvalues=torch.stack(self.gram_spectra),
            operator_eigenvalues=(torch.stack(self.operator_spectra) if self.operator_spectra else None),
            operator_norm=torch.stack(self.norms) if self.norms else None,
            write_weight=torch.cat(self.weights) if self.weights else None,
            blend=torch.cat(self.blends) if self.blends else None,
            statistics=self.statistics.to("cpu"),
        )


def _pieces(begin: int, end: int, positions: Iterable[int]) -> list[tuple[int, int]]:
    """The tokens `begin` to `end` - 1, cut where a measurement is due and into pieces of at most `PIECE`."""
    cuts = sorted({begin, end, *range(begin, end, PIECE), *(place for place in positions if begin < place < end)})
    return list(itertools.pairwise(cuts))


def _reading(mixer: SpectralKoopmanAttention) -> str:
    if not mixer.causal:
        return "each token reads all tokens"
    if mixer.refresh_interval is not None:
        return f"each token reads the chunks of {mixer.refresh_interval} tokens before its own"
    return "each token reads all tokens up to itself"


def _number(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()
