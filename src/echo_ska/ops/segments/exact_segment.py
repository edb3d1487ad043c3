"""One segment of the exact read in the basis whitened by its anchor, the statistics at its start; its chunks' moments.

There G~ is the identity at the start. Rows are batch rows times heads, R of them, with n chunks of S tokens. Chunks are
read in groups: either one after the other (products of b = R matrices, which stay in a cache), or all at once
(b = R n, for many cores or a GPU). docs/method.md section 3 derives the algebra.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from echo_ska.algebra import RidgeFactor
from echo_ska.ops.segments.tokens import Tokens
from echo_ska.ops.segments.values import Anchor, Workspace


@dataclasses.dataclass
class Kept:
    """What the forward pass of a segment leaves to the backward pass.

    Attributes:
        anchor: at first of the segment's start; its operator and readout are then taken on to the last chunk's start.
        inverse: J = (I + sum of X^T X)^-1 at the last chunk's start, [R, r, r].
        solve_rows: W, [groups, b, S, r].
        points: p_0 to p_K, [groups, b, K + 1, S, r].
    """

    anchor: Anchor
    inverse: Tensor
    solve_rows: Tensor
    points: Tensor


@dataclasses.dataclass
class Group:
    """The chunks that are read together: whitened tokens [b, S, ...], and what stands before each chunk.

    Attributes:
        index: of the group in its segment.
        query: only in the forward pass.
        plain, filtered: [b, S, 1].
        solve_rows, points: as in `Kept`, of this group.
        inverse: J, [b, r, r]; None for the identity.
        operator: A, [b, r, r]; None at power 0.
        readout: C, [b, P, r].
    """

    index: int
    query: Tensor
    key: Tensor
    previous_key: Tensor
    value: Tensor
    plain: Tensor | None
    filtered: Tensor
    solve_rows: Tensor
    points: Tensor
    inverse: Tensor | None
    operator: Tensor | None
    readout: Tensor

    def __post_init__(self) -> None:
        self.key_t, self.previous_key_t, self.solve_rows_t = self.key.mT, self.previous_key.mT, self.solve_rows.mT


class ExactSegment:
    """One segment whose tokens read the anchor, the chunks before their own, and of their own chunk what `mask` allows.

    Args:
        tokens: in the raw basis.
        kept: to fill, or filled.
        mask: [S, S]; 1 where the token of a row reads the token of a column. Each row is a prefix.
        power: K.
        has_lag: whether anything downstream of the lag moment is needed.
        work: buffers.
    """

    def __init__(self, tokens: Tokens, kept: Kept, mask: Tensor, power: int, has_lag: bool, work: Workspace) -> None:
        self.tokens, self.kept, self.mask, self.power, self.has_lag, self.work = (
            tokens,
            kept,
            mask,
            power,
            has_lag,
            work,
        )
        self.rows, self.slots, self.rank = tokens.query.shape
        self.head_dim, self.size = tokens.value.shape[2], len(mask)
        self.chunks = self.slots // self.size
        self.groups, self.batch = kept.solve_rows.shape[:2]
        to_white = kept.anchor.whitener.mT
        key = torch.bmm(tokens.key[:, 1:], to_white, out=self.slot_buffer("key", self.rank))
        previous_key = key
        if has_lag:
            previous_key = self.slot_buffer("previous_key", self.rank)
            previous_key[:, :1] = torch.bmm(tokens.key[:, :1], to_white)
            previous_key[:, 1:] = key[:, :-1]
        self._keys, self._previous_keys, self._values = self.cut(key), self.cut(previous_key), self.cut(tokens.value)
        self._plain = [None] * self.groups if tokens.plain is None else self.cut(tokens.plain)
        self._filtered = self.cut(tokens.filtered)
        self._solve_rows, self._points = kept.solve_rows.unbind(0), kept.points.unbind(0)
        self.scores = self.buffer("scores", self.size, self.size)
        self.solved, self.right, self.point = (
            self.buffer(name, self.size, self.rank) for name in ("solved", "right", "point")
        )

    def cut(self, slots: Tensor) -> list[Tensor]:
        """[R, n S, d] -> one view [b, S, d] for each group."""
        if self.groups == 1:
            return [slots.view(self.batch, self.size, -1)]
        return list(slots.view(self.rows, self.chunks, self.size, -1).unbind(1))

    def slot_buffer(self, name: str, width: int) -> Tensor:
        return self.work(name, self.rows, self.slots, width)

    def slot_sums(self, left: Tensor, right: Tensor) -> Tensor:
        """Inner products of two [groups, b, S, r], [R, n S, 1], in a buffer."""
        products = torch.mul(left, right, out=self.work("products", *left.shape))
        sums = torch.sum(products, dim=-1, keepdim=True)
        if self.groups > 1:
            sums = sums.transpose(0, 1)
        return sums.reshape(self.rows, self.slots, 1)

    def buffer(self, name: str, *shape: int) -> Tensor:
        return self.work(name, self.batch, *shape)

    def solve(self, rows: Tensor, group: Group) -> Tensor:
        """G~_t^-1 applied to the row of each token t, [b, S, r]: Y J - mask(Y W^T) W; `self.solved` holds the result.

        Masks multiply, which is faster than torch.tril.
        """
        scores = torch.bmm(rows, group.solve_rows_t, out=self.scores).mul_(self.mask)
        if group.inverse is None:
            return torch.baddbmm(rows, scores, group.solve_rows, alpha=-1, out=self.solved)
        return torch.bmm(rows, group.inverse, out=self.solved).baddbmm_(scores, group.solve_rows, alpha=-1)

    def read_point(self, group: Group) -> Tensor:
        """What C is applied to, [b, S, r]; `self.point` holds the result."""
        point = torch.mul(group.points[:, self.power], group.filtered, out=self.point)
        return point if group.plain is None else point.addcmul_(group.points[:, 0], group.plain)

    def forward_groups(self, factors: list[RidgeFactor]) -> Iterator[Group]:
        """The groups in order; fills W on the way and takes `kept` on to the last chunk's start.

        Args:
            factors: those of the chunks are appended, for their success to be checked together.
        """
        anchor, inverse = self.kept.anchor, self.kept.inverse
        query = torch.bmm(self.tokens.query, anchor.whitener.mT, out=self.slot_buffer("white_query", self.rank))
        queries = self.cut(query)
        inverse.zero_().diagonal(dim1=-2, dim2=-1).fill_(1)
        if self.groups == 1:
            inverses = self._inverses_at_once(factors)
            operator, readout = self._moments_at_once(from_last=False)
            yield self._group(0, queries[0], inverses, operator, readout)
            return
        for i in range(self.chunks):
            if i > 0:
                self._advance(i - 1, anchor, inverse, 1)
            before = inverse if i > 0 else None
            self._solve_rows[i].copy_(self._factor(self._keys[i], before, factors))
            yield self._group(i, queries[i], before, anchor.operator, anchor.readout)

    def backward_groups(self) -> Iterator[Group]:
        """The groups in reverse, from a filled `kept`, which stays as it is; their queries are not set."""
        anchor = self.kept.anchor
        if self.groups == 1:
            inverses = self._running(
                "inverse", self.kept.inverse, self._solve_rows[0], self._solve_rows[0], -1, from_last=True
            )
            operator, readout = self._moments_at_once(from_last=True)
            yield self._group(0, self._keys[0], inverses if self.chunks > 1 else None, operator, readout)
            return
        inverse, readout = self._copy("inverse", self.kept.inverse), self._copy("readout", anchor.readout)
        operator = None if anchor.operator is None else self._copy("operator", anchor.operator)
        running = Anchor(anchor.whitener, operator, readout)
        for i in reversed(range(self.chunks)):
            if i < self.chunks - 1:
                self._advance(i, running, inverse, -1)
            yield self._group(i, self._keys[i], inverse if i > 0 else None, operator, readout)

    def _group(self, i: int, query: Tensor, inverse: Tensor | None, operator: Tensor | None, readout: Tensor) -> Group:
        tokens = (query, self._keys[i], self._previous_keys[i], self._values[i], self._plain[i], self._filtered[i])
        return Group(i, *tokens, self._solve_rows[i], self._points[i], inverse, operator, readout)

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        return self.work(name, *tensor.shape).copy_(tensor)

    def _factor(self, key: Tensor, inverse: Tensor | None, factors: list[RidgeFactor]) -> Tensor:
        """W = B^-1 H of one chunk, [R, S, r], with B B^T = I + X H^T and H = X J."""
        solved = key if inverse is None else torch.bmm(key, inverse, out=self.work("H", *key.shape))
        cross = torch.bmm(key, solved.mT, out=self.work("B", self.rows, self.size, self.size))
        factors.append(RidgeFactor.of(cross, 1.0))
        return factors[-1].combine(solved)

    def _advance(self, i: int, running: Anchor, inverse: Tensor, sign: int) -> None:
        """Take J, A and C, in place, from before to after chunk i (sign 1), or back (-1)."""
        key, solve_rows = self._keys[i], self._solve_rows[i]
        inverse.baddbmm_(solve_rows.mT, solve_rows, alpha=-sign)
        if running.operator is not None:
            running.operator.baddbmm_(key.mT, self._previous_keys[i], alpha=sign)
        running.readout.baddbmm_(self._values[i].mT, key, alpha=sign)

    def _inverses_at_once(self, factors: list[RidgeFactor]) -> Tensor | None:
        """J before every chunk, [b, r, r], chunk after chunk; fills W."""
        r, n = self.rank, self.chunks
        inverse = self.buffer("inverse", r, r).view(self.rows, n, r, r)
        keys, solve_rows = (t.view(self.rows, n, self.size, r) for t in (self._keys[0], self._solve_rows[0]))
        inverse[:, 0] = self.kept.inverse
        for c in range(n):
            w = self._factor(keys[:, c], inverse[:, c] if c > 0 else None, factors)
            solve_rows[:, c] = w
            if c + 1 < n:
                step = torch.bmm(w.mT, w, out=self.work("step", self.rows, r, r))
                torch.sub(inverse[:, c], step, out=inverse[:, c + 1])
        self.kept.inverse.copy_(inverse[:, -1])
        return inverse.view(self.batch, r, r) if n > 1 else None

    def _moments_at_once(self, from_last: bool) -> tuple[Tensor | None, Tensor]:
        """A and C before every chunk, [b, ...]; from those before the last, or the first, which `kept` then leaves."""
        anchor, operator = self.kept.anchor, None
        key, value = self._keys[0], self._values[0]
        if anchor.operator is not None:
            operator = self._running("operator", anchor.operator, key, self._previous_keys[0], 1, from_last)
        return operator, self._running("readout", anchor.readout, value, key, 1, from_last)

    def _running(self, name: str, known: Tensor, left: Tensor, right: Tensor, sign: int, from_last: bool) -> Tensor:
        """Sums before every chunk, [b, ...], of terms left^T right; `known` is moved to the last if it is not."""
        n = self.chunks
        running = self.buffer(name, *known.shape[1:]).view(self.rows, n, *known.shape[1:])
        running[:, -1 if from_last else 0] = known
        if n > 1:
            terms = torch.bmm(left.mT, right, out=self.buffer("terms", *known.shape[1:])).view_as(running)
            for c in range(n - 1, 0, -1) if from_last else range(1, n):
                if from_last:
                    torch.sub(running[:, c], terms[:, c - 1], alpha=sign, out=running[:, c - 1])
                else:
                    torch.add(running[:, c - 1], terms[:, c - 1], alpha=sign, out=running[:, c])
        if not from_last:
            known.copy_(running[:, -1])
        return running.flatten(0, 1)
