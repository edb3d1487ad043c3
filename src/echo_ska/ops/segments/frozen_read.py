"""Reading statistics that stand still: chunk-causal reads with chunks of many tokens, and non-causal reads."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from echo_ska.ops.segments.tokens import Tokens
from echo_ska.ops.segments.values import Anchor, Statistics, Workspace


@dataclasses.dataclass
class ReadGradients:
    """Gradients of one segment's reads.

    Attributes:
        query, plain, filtered: [R, slots, ...].
        own: of what was read, in the anchors' basis, [N, ...].
    """

    query: Tensor
    plain: Tensor | None
    filtered: Tensor
    own: Statistics


class FrozenRead:
    """One segment whose chunks each read an `Anchor` as it stands."""

    def __init__(self, tokens: Tokens, anchor: Anchor, power: int, work: Workspace) -> None:
        self.anchor, self.power, self.work = anchor, power, work
        self.shape = tokens.query.shape
        self.batch, self.rank, _ = anchor.whitener.shape
        self.filtered = self._chunks(tokens.filtered)
        self.plain = None if tokens.plain is None else self._chunks(tokens.plain)
        size = self.filtered.shape[1]
        self.points = work("points", self.batch, power + 1, size, self.rank)
        solved = torch.bmm(self._chunks(tokens.query), anchor.whitener.mT, out=self._buffer("solved"))
        self.points[:, 0] = solved
        for j in range(1, power + 1):
            assert anchor.operator is not None
            solved = torch.bmm(self.points[:, j - 1], anchor.operator.mT, out=solved)
            self.points[:, j] = solved
        self.point = torch.mul(solved, self.filtered, out=self._buffer("point"))
        if self.plain is not None:
            self.point.addcmul_(self.points[:, 0], self.plain)

    def _chunks(self, rows: Tensor) -> Tensor:
        return rows.reshape(self.batch, -1, rows.shape[-1])

    def _buffer(self, name: str) -> Tensor:
        return self.work(name, *self.filtered.shape[:2], self.rank)

    def output(self) -> Tensor:
        """[R, slots, P], in a buffer."""
        readout = self.anchor.readout
        out = self.work("output", *self.point.shape[:2], readout.shape[1])
        return torch.bmm(self.point, readout.mT, out=out).view(*self.shape[:2], -1)

    def backward(self, output_grad: Tensor) -> ReadGradients:
        """Gradients from that of the output, [R, slots, P]; the basis is held fixed, as in `segment_gradients`."""
        K, grad, points = self.power, self._chunks(output_grad), self.points
        size = grad.shape[1]
        value_moment = torch.bmm(grad.mT, self.point)
        point_grad = torch.bmm(grad, self.anchor.readout, out=self._buffer("point_grad"))
        filtered_grad = (point_grad * points[:, K]).sum(-1, keepdim=True)
        plain_grad = None if self.plain is None else (point_grad * points[:, 0]).sum(-1, keepdim=True)
        rights = self.work("rights", self.batch, K + 1, size, self.rank)
        right = torch.mul(point_grad, self.filtered, out=self._buffer("solved"))
        for j in range(K, -1, -1):
            if j < K:
                assert self.anchor.operator is not None
                right = torch.bmm(rights[:, j + 1], self.anchor.operator, out=right)
            if j == 0 and self.plain is not None:
                right.addcmul_(point_grad, self.plain)
            rights[:, j] = right
        query = torch.bmm(right, self.anchor.whitener, out=self._buffer("query_grad"))
        all_rights, all_points = rights.flatten(1, 2), points.flatten(1, 2)
        gram = torch.bmm(all_rights.mT, all_points).neg_()
        lag_moment = torch.bmm(all_rights[:, size:].mT, all_points[:, : K * size]) if K else torch.zeros_like(gram)
        own = Statistics(gram, lag_moment, value_moment)
        return ReadGradients(query.view(self.shape), plain_grad, filtered_grad, own)


def write_gradients(tokens: Tokens, later: Statistics, has_lag: bool, work: Workspace) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a segment's keys [R, slots, r], of the key before it [R, 1, r], and of its values [R, slots, P].

    Args:
        later: gradient of all after each chunk with respect to the raw statistics, [rows, H, n, ...].
    """
    rows, slots, head_dim = tokens.value.shape
    chunks, rank = later.gram.shape[2], tokens.key.shape[-1]
    own = tokens.key[:, 1:].reshape(rows * chunks, -1, rank)
    value = tokens.value.view(rows * chunks, -1, head_dim)
    gram, lag, moment = (tensor.flatten(0, 2) for tensor in later.tensors())
    key_grad = torch.bmm(own, gram + gram.mT, out=work("key_grad", *own.shape)).baddbmm_(value, moment)
    value_grad = torch.bmm(own, moment.mT, out=work("value_grad", *value.shape))
    if not has_lag:
        return key_grad.view(rows, slots, rank), key_grad.new_zeros(rows, 1, rank), value_grad.view_as(tokens.value)
    key_grad = key_grad.baddbmm_(tokens.key[:, :-1].reshape(own.shape), lag.mT).view(rows, slots, rank)
    earlier = torch.bmm(own, lag, out=work("earlier", *own.shape)).view(rows, slots, rank)
    key_grad[:, :-1] += earlier[:, 1:]
    return key_grad, earlier[:, :1], value_grad.view_as(tokens.value)
