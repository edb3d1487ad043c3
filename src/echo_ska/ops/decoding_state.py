"""The state of Spectral Koopman Attention in the form that decoding updates in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from echo_ska.algebra import SufficientStatistics, TensorRecord
from echo_ska.ops.readout import fold, inverse_of, per_head
from echo_ska.ops.state import RecurrentState, check_fields, choose_rows

REINVERT_EVERY = {torch.float64: 1024, torch.float32: 64}
"""Tokens after which the inverse is computed anew from the Gram matrix, by dtype (benchmarks/decoding_accuracy.py).

In float64 the updates lose less than the sums do, so this keeps the inverse at the sums rather than exact; in float32
it is what keeps it usable at all.
"""


@dataclasses.dataclass
class FrozenReading(TensorRecord):
    """What the tokens of the current chunk read under a refresh interval, and the statistics it comes from.

    Attributes:
        readouts: C J and C (J M)^power J of the frozen statistics, [N, H, 2, P, r], without gain and scale.
        moments, first_key, previous_key, count: the frozen statistics, laid out as in `DecodingState`.
        power, refresh_interval: what the readouts were folded for, and how many tokens later they are folded again.
    """

    readouts: Tensor
    moments: Tensor
    first_key: Tensor
    previous_key: Tensor
    count: Tensor
    power: int
    refresh_interval: int

    def _fields(self) -> Iterator[tuple[str, Any]]:
        return ((name, value) for name, value in super()._fields() if isinstance(value, Tensor))


@dataclasses.dataclass
class DecodingState(TensorRecord):
    """A `RecurrentState` in the form that decoding updates in place; all floating tensors in the accumulator's dtype.

    `moments` holds G, then the TRANSPOSED lag moment sum x_{t-1} x_t^T, then C, so that one rank-one product
    [x_t; x_{t-1}; u_t] x_t^T updates all three. The inverse belongs to one ridge, so this is a working copy: what to
    keep, save or merge is `to_recurrent()`.

    Attributes:
        moments: [N, H, 2 r + P, r].
        inverse: J = (G + ridge I)^-1, [N, H, r, r].
        ridge: the one that the inverse belongs to, [N, H].
        first_key, previous_key: [N, H, r], as in `SufficientStatistics`.
        count, position: [N] int64, as in `SufficientStatistics` and `RecurrentState`.
        frozen: under a refresh interval, what tokens read; else None.
    """

    moments: Tensor
    inverse: Tensor
    ridge: Tensor
    first_key: Tensor
    previous_key: Tensor
    count: Tensor
    position: Tensor
    frozen: FrozenReading | None = None

    def __post_init__(self) -> None:
        self._tokens_until_due = 0
        self._all_begun = False
        self._views: Any = None  # of echo_ska.ops.decoding, as the next
        self._step: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy takes its own views: those of the original look into the original's memory.
        return self.__dict__ | {"_tokens_until_due": 0, "_all_begun": False, "_views": None, "_step": None}

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        state: RecurrentState,
        ridge: Tensor | float,
        *,
        power: int | None = None,
        refresh_interval: int | None = None,
    ) -> Self:
        """A copy of `state` made ready for decoding: the sums are copied exactly, the inverse is computed.

        Args:
            state: what the op returned, or an empty one.
            ridge: > 0, scalar or [H]; every later step has to use the same.
            power, refresh_interval: needed where `state` has frozen statistics.

        Raises:
            ValueError: `ridge` is not positive, `refresh_interval` or `power` does not fit the state, or its fields do
                not fit each other.
            ArithmeticError: a Gram matrix plus the ridge is not positive definite; names batch row and head.
        """
        check_fields(state, "state")
        state = state.accumulating()
        if (state.frozen_statistics is None) != (refresh_interval is None):
            made, used = ("without", "with") if state.frozen_statistics is None else ("with", "without")
            raise ValueError(f"the state was made {made} a refresh_interval and is to be read {used} one: use the same")
        statistics, frozen = state.statistics, None
        if state.frozen_statistics is not None and refresh_interval is not None:
            if power is None:
                raise ValueError("a state with a refresh_interval is folded for one power: give power")
            if not state.is_frozen_at(refresh_interval):
                made = f"the state was frozen at another refresh_interval than {refresh_interval}"
                raise ValueError(f"{made}: use the same")
            old = state.frozen_statistics
            inverse = inverse_of(old.gram, ridge)
            frozen = FrozenReading(
                readouts=fold(inverse, old.lag_moment, old.value_moment, power),
                moments=_stack(old),
                first_key=old.first_key.clone(),
                previous_key=old.previous_key.clone(memory_format=torch.contiguous_format),
                count=old.count.clone(),
                power=power,
                refresh_interval=refresh_interval,
            )
        own_ridge = per_head(ridge, statistics.gram).flatten().expand(statistics.gram.shape[:2])
        return cls(
            moments=_stack(statistics),
            inverse=inverse_of(statistics.gram, ridge).contiguous(),
            ridge=own_ridge.clone(memory_format=torch.contiguous_format),
            first_key=statistics.first_key.clone(),
            previous_key=statistics.previous_key.clone(memory_format=torch.contiguous_format),
            count=statistics.count.clone(),
            position=state.position.clone(),
            frozen=frozen,
        )

    def to_recurrent(self) -> RecurrentState:
        """The same state as the op takes it, a copy: exactly the sums that decoding has reached."""
        statistics, frozen = _unstack(self), None
        if self.frozen is not None:
            # A chunk that is just complete is frozen when the next token comes; the value says so already.
            complete = self.position % self.frozen.refresh_interval == 0
            frozen = choose_rows(complete, statistics, _unstack(self.frozen))
        return RecurrentState(statistics, frozen, self.position.clone())

    def prepare(self, ridge: Tensor | float) -> None:
        """Do what is due before the next token; call it once before every `advance`.

        Rows whose position is a multiple of `REINVERT_EVERY` get their inverse from a Cholesky factorisation of
        G + ridge I: the inverse and the sums round differently, and would drift apart. Rows that have completed a chunk
        freeze it. A counter on the host knows for how many tokens nothing is due, so most calls do no more than count.

        Args:
            ridge: > 0, scalar or [H]: the one the state was made with.

        Raises:
            ValueError: it is another ridge; found where the inverse is due, as before the state's first token.
            ArithmeticError: sums are not finite, or a matrix is not positive definite; names batch row and head.
        """
        if self._tokens_until_due > 0:
            self._tokens_until_due -= 1
        else:
            self._do_what_is_due(ridge)

    @torch.no_grad()
    def _do_what_is_due(self, ridge: Tensor | float) -> None:
        self._require_ridge(ridge)
        positions = self.position.tolist()
        periods = [REINVERT_EVERY[self.moments.dtype]]
        self._reinvert([row for row, position in enumerate(positions) if position % periods[0] == 0], ridge)
        if self.frozen is not None:
            periods.append(self.frozen.refresh_interval)
            self._freeze([row for row, position in enumerate(positions) if position % periods[1] == 0])
        self._all_begun = bool((self.count > 0).all())
        due = min((period - position % period for position in positions for period in periods), default=1)
        self._tokens_until_due = due - 1 if self._all_begun else 0

    def _require_ridge(self, ridge: Tensor | float) -> None:
        given = per_head(ridge, self.moments).flatten().expand_as(self.ridge)
        other = ~torch.isclose(given, self.ridge, rtol=1e-6, atol=0.0)
        if bool(other.any()):
            row, head = other.nonzero()[0].tolist()
            raise ValueError(
                f"the state was made for ridge {self.ridge[row, head]:.6g} at batch row {row}, head {head}, not "
                f"{given[row, head]:.6g}: use the same, or make it anew: DecodingState.of(state.to_recurrent(), ridge)"
            )

    def _reinvert(self, rows: list[int], ridge: Tensor | float) -> None:
        if not rows:
            return
        index = torch.tensor(rows, device=self.moments.device)
        moments, drifted = self.moments[index], self.inverse[index]
        healthy = moments.isfinite().all(-1).all(-1) & (drifted.diagonal(dim1=-2, dim2=-1) > 0).all(-1)  # [rows, H]
        if not bool(healthy.all()):
            row, head = (~healthy).nonzero()[0].tolist()
            raise ArithmeticError(
                f"the decoding state is broken at batch row {rows[row]}, head {head} (a sum is not finite, or the "
                "inverse is no longer positive): look for inputs that are not finite, or raise the ridge"
            )
        rank = self.inverse.shape[-1]
        self.inverse[index] = inverse_of(moments[:, :, :rank], ridge, index)

    def _freeze(self, rows: list[int]) -> None:
        if not rows or self.frozen is None:
            return
        index = torch.tensor(rows, device=self.moments.device)
        for name in ("moments", "first_key", "previous_key", "count"):
            getattr(self.frozen, name)[index] = getattr(self, name)[index]
        _, lag_transposed, value_moment = blocks(self.moments[index])
        self.frozen.readouts[index] = fold(self.inverse[index], lag_transposed.mT, value_moment, self.frozen.power)


def _stack(statistics: SufficientStatistics) -> Tensor:
    return torch.cat([statistics.gram, statistics.lag_moment.mT, statistics.value_moment], dim=-2)


def blocks(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """G, the transposed M, and C, as views of [..., 2 r + P, r]."""
    rank = moments.shape[-1]
    gram, lag_transposed, value_moment = moments.split([rank, rank, moments.shape[-2] - 2 * rank], dim=-2)
    return gram, lag_transposed, value_moment


def _unstack(record: DecodingState | FrozenReading) -> SufficientStatistics:
    gram, lag_transposed, value_moment = blocks(record.moments)
    return SufficientStatistics(
        gram=gram.clone(),
        lag_moment=lag_transposed.mT.contiguous(),
        value_moment=value_moment.clone(),
        first_key=record.first_key.clone(),
        previous_key=record.previous_key.clone(),
        count=record.count.clone(),
    )
