"""Taking tokens back: what a cache keeps, when asked to, so that `crop` can give the states of before."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from echo_ska.nn.mixer import MixerState

RECENT_TOKENS = 256
"""How many tokens can be taken back at any time, unless more are asked for."""

FARTHEST_TOKENS = 4096
"""Within so many tokens, everything since the last crop can be taken back too."""


@dataclasses.dataclass
class Point:
    """The states of all layers after so many tokens; a cache shares them until it has to change them in place."""

    tokens: int
    states: list[MixerState | None]

    def map(self, function: Callable[[Tensor], Tensor]) -> Point:
        """The point with `function` applied to every tensor."""
        return Point(self.tokens, [None if state is None else state.map(function) for state in self.states])


class Rollback:
    """Points to start from, and what the model has read since the earliest: enough to compute any later state again.

    A state of a recurrent layer does not hold what it was made from, and taking a token away again by arithmetic loses
    digits. So states are kept as they were, at most three a layer (one where the last crop left off and two at least
    `recent` tokens apart), together with the embedded tokens since, at most a few thousand a row. A point shares its
    tensors with the cache for as long as calls replace states; a copy is made when a single token is to be read in
    place.

    Args:
        recent: how many tokens are kept at least, and after how many there is another point.
    """

    def __init__(self, recent: int = RECENT_TOKENS) -> None:
        self.recent = recent
        self.forget()

    def forget(self) -> None:
        """Nothing before now can be taken back any more."""
        self._anchors: list[Point] = []
        self._cropped: Point | None = None
        self._read: list[tuple[int, Tensor, Tensor | None]] = []  # first token, inputs [B, T, d], real tokens [B, T]
        self._model: Callable[[], nn.Module | None] | None = None  # a weak reference

    def __getstate__(self) -> dict[str, Any]:
        """To be pickled: the record belongs to a model that lives here, and stays."""
        return vars(type(self)(self.recent))

    def __deepcopy__(self, memo: dict[int, Any]) -> Rollback:
        """With the record, of the same model."""
        copied = memo[id(self)] = type(self)(self.recent)
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def tensors(self) -> Iterator[Tensor]:
        """The tensors of all that is kept."""
        for point in self._points:
            for state in point.states:
                yield from () if state is None else state.tensors().values()

    def too_long(self, tokens: int, new_tokens: int) -> int:
        """How many tokens of a call have to be read by a call of their own, so that the inputs of the rest suffice.

        A call right after a crop is taken whole (it is a draft to be judged, and may be rejected down to its start).
        """
        judged = self._cropped is not None and self._cropped.tokens == tokens and new_tokens <= FARTHEST_TOKENS
        return 0 if judged else max(0, new_tokens - self.recent)

    def before(self, tokens: int, here: Callable[[], Point]) -> None:
        """Before a call, with the cache at `tokens`: `here` gives its point, where one is due."""
        if not self._anchors or tokens - self._anchors[-1].tokens >= self.recent:
            self._anchors.append(here())

    def after(self, tokens: int, model: nn.Module, inputs: Tensor, real: Tensor | None) -> None:
        """After a call that ends at `tokens`: `model` read `inputs` [B, T, d], padding where `real` [B, T] is false."""
        self._model = weakref.ref(model)
        own = inputs.detach()
        if own.untyped_storage().nbytes() > own.nbytes:  # a part of a prompt, all of which would be kept with it
            own = own.clone()
        self._read.append((tokens - inputs.shape[1], own, None if real is None else real.clone()))
        while len(self._anchors) > 1 and tokens - self._anchors[1].tokens >= self.recent:
            del self._anchors[0]
        if self._cropped is not None and tokens - self._cropped.tokens > FARTHEST_TOKENS:
            self._cropped = None
        earliest = min(point.tokens for point in self._points)
        self._read = [entry for entry in self._read if entry[0] + entry[1].shape[1] > earliest]

    def nearest(self, target: int) -> Point | None:
        """The latest point at or before `target` tokens, or None."""
        return max((p for p in self._points if p.tokens <= target), key=lambda p: p.tokens, default=None)

    def between(self, begin: int, end: int) -> tuple[nn.Module, Tensor, Tensor | None]:
        """The model, its inputs [B, end - begin, d] of these tokens, and which of them are real (None: all)."""
        model = None if self._model is None else self._model()
        if model is None:
            raise ValueError("the model that read into this cache is gone, and with it what crop needs to read again")
        pieces, masks, padded = [], [], False
        for start, inputs, real in self._read:
            part = slice(max(begin - start, 0), max(end - start, 0))
            pieces.append(inputs[:, part])
            masks.append(pieces[-1].new_ones(pieces[-1].shape[:2], dtype=torch.bool) if real is None else real[:, part])
            padded |= real is not None
        return model, torch.cat(pieces, dim=1), torch.cat(masks, dim=1) if padded else None

    def cropped_to(self, point: Point) -> None:
        """The cache stands at `point` now: what lies behind it is forgotten."""
        self._anchors = [anchor for anchor in self._anchors if anchor.tokens <= point.tokens]
        self._cropped = point
        self._read = [
            (start, inputs[:, : point.tokens - start], None if real is None else real[:, : point.tokens - start])
            for start, inputs, real in self._read
            if start < point.tokens
        ]

    def farthest(self, tokens: int) -> int:
        """How many tokens can be taken back from `tokens`."""
        return tokens - min((point.tokens for point in self._points), default=tokens)

    def map(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply `function`, which picks or repeats rows, to all that is kept."""
        self._anchors = [anchor.map(function) for anchor in self._anchors]
        self._cropped = None if self._cropped is None else self._cropped.map(function)
        self._read = [
            (start, function(inputs), None if real is None else function(real)) for start, inputs, real in self._read
        ]

    @property
    def _points(self) -> list[Point]:
        return self._anchors if self._cropped is None else [*self._anchors, self._cropped]
