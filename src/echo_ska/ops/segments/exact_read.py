"""The reads of one segment and their gradient, with no loop over tokens (docs/method.md section 3)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from echo_ska.algebra import RidgeFactor
from echo_ska.ops.segments.exact_segment import ExactSegment, Group
from echo_ska.ops.segments.values import Statistics


@dataclasses.dataclass
class Gradients:
    """Gradients of one segment's tokens, as in `Tokens`; `previous_key` is of the key before it, [R, 1, r]."""

    query: Tensor
    key: Tensor
    previous_key: Tensor
    value: Tensor
    plain: Tensor | None
    filtered: Tensor


def read_segment(segment: ExactSegment) -> tuple[Tensor, list[RidgeFactor]]:
    """Fill what the segment keeps.

    Returns:
        the outputs, [R, n S, P], in a buffer, and the factors, whose success is to be checked together.
    """
    K, mask = segment.power, segment.mask
    factors: list[RidgeFactor] = []
    output = segment.slot_buffer("output", segment.head_dim)
    outputs = segment.cut(output)
    read = segment.buffer("read", segment.size, segment.head_dim)
    for group in segment.forward_groups(factors):
        solved = segment.solve(group.query, group)
        group.points[:, 0].copy_(solved)
        if group.operator is not None:
            operator_t = group.operator.mT
            for j in range(1, K + 1):
                scores = torch.bmm(solved, group.previous_key_t, out=segment.scores).mul_(mask)
                right = torch.bmm(solved, operator_t, out=segment.right).baddbmm_(scores, group.key)
                solved = segment.solve(right, group)
                group.points[:, j].copy_(solved)
        point = segment.read_point(group)
        scores = torch.bmm(point, group.key_t, out=segment.scores).mul_(mask)
        outputs[group.index].copy_(torch.bmm(point, group.readout.mT, out=read).baddbmm_(scores, group.value))
    return output, factors


def segment_gradients(segment: ExactSegment, output_grad: Tensor, later: Statistics, sent: Statistics) -> Gradients:
    """Gradients, in buffers.

    The basis is held fixed: the output does not depend on it. For p = G~^-1 c the adjoint is c_bar = G~^-1 p_bar and
    G_bar = -c_bar p^T; the solve is its own adjoint.

    Args:
        segment: with what `read_segment` filled.
        output_grad: [R, n S, P], zero in empty slots.
        later: gradient of everything after the segment with respect to the statistics at its end, in the anchor's
            basis, [rows, H, ...].
        sent: what the segment's reads send to the statistics at its start is added here; may be `later` itself.
    """
    b, S, r, P, K, mask = segment.batch, segment.size, segment.rank, segment.head_dim, segment.power, segment.mask
    query, key, value = (segment.slot_buffer(f"{name}_grad", d) for name, d in (("query", r), ("key", r), ("value", P)))
    output_grads, query_grads, key_grads, value_grads = (
        segment.cut(slots) for slots in (output_grad, query, key, value)
    )
    rights, right_scores = segment.buffer("rights", K + 1, S, r), segment.buffer("right_scores", K + 1, S, S)
    flat_rights, flat_scores = rights.view(b, -1, r), right_scores.view(b, -1, S)
    each_right, each_score = rights.unbind(1), right_scores.unbind(1)
    all_pairs, lagged = segment.buffer("pairs", (K + 1) * S, S), segment.buffer("lagged", K * S, S)
    by_power = all_pairs.view(b, K + 1, S, S)
    key_grad, value_grad = segment.buffer("group_key_grad", S, r), segment.buffer("group_value_grad", S, P)
    previous_grad = segment.buffer("group_previous_grad", S, r)
    by_row, earlier = key_grad.view(segment.rows, -1, r), previous_grad.view(segment.rows, -1, r)
    carried = segment.work("carried", segment.rows, 1, r).zero_()
    point_grads = segment.work("point_grads", segment.groups, b, S, r)
    sums = _Sums(segment, later, sent)
    for group in segment.backward_groups():
        i, grad, scores = group.index, output_grads[group.index], segment.scores
        point = segment.read_point(group)
        torch.bmm(grad, group.value.mT, out=scores).mul_(mask)
        point_grad = torch.bmm(grad, group.readout, out=point_grads[i]).baddbmm_(scores, group.key)
        torch.bmm(scores.mT, point, out=key_grad)
        torch.bmm(point, group.key_t, out=scores).mul_(mask)
        torch.bmm(scores.mT, grad, out=value_grad)

        down = torch.mul(point_grad, group.filtered, out=segment.right)
        for j in range(K, -1, -1):
            if j == 0 and group.plain is not None:
                down.addcmul_(point_grad, group.plain)
            right = segment.solve(down, group)  # c_j
            each_right[j].copy_(right)
            torch.bmm(right, group.key_t, out=scores).mul_(mask)
            each_score[j].copy_(scores)
            if j > 0 and group.operator is not None:
                down = torch.bmm(right, group.operator, out=segment.right).baddbmm_(scores, group.previous_key)
        query_grads[i].copy_(right)

        points = group.points.view(b, -1, r)
        torch.bmm(points, group.key_t, out=all_pairs)
        if K > 0:
            before = points[:, : K * S]
            all_pairs[:, S:].sub_(torch.bmm(before, group.previous_key_t, out=lagged))
            torch.bmm(flat_scores[:, S:].mT, before, out=previous_grad)
        by_power.mul_(mask)
        key_grad.baddbmm_(all_pairs.mT, flat_rights, alpha=-1).baddbmm_(flat_scores.mT, points, alpha=-1)

        sums.pass_group(group, (flat_rights, points, grad, point), key_grad, value_grad, previous_grad)
        if segment.has_lag:
            by_row[:, :-1].add_(earlier[:, 1:])
            by_row[:, -1:].add_(carried)
            carried.copy_(earlier[:, :1])
        key_grads[i].copy_(key_grad)
        value_grads[i].copy_(value_grad)
    whitener, plain = segment.kept.anchor.whitener, segment.tokens.plain
    points = segment.kept.points
    return Gradients(
        query=torch.bmm(query, whitener, out=segment.slot_buffer("raw_query_grad", r)),
        key=torch.bmm(key, whitener, out=segment.slot_buffer("raw_key_grad", r)),
        previous_key=torch.bmm(carried, whitener),
        value=value,
        plain=None if plain is None else segment.slot_sums(point_grads, points[:, :, 0]),
        filtered=segment.slot_sums(point_grads, points[:, :, K]),
    )


class _Sums:
    """What reads send to the statistics before them, passed from the last group to the first."""

    def __init__(self, segment: ExactSegment, later: Statistics, sent: Statistics) -> None:
        self.segment = segment
        self.later, self.sent = (tuple(tensor.flatten(0, 1) for tensor in sums.tensors()) for sums in (later, sent))

    def pass_group(
        self,
        group: Group,
        read: tuple[Tensor, Tensor, Tensor, Tensor],
        key_grad: Tensor,
        value_grad: Tensor,
        previous_grad: Tensor,
    ) -> None:
        """Add to the gradients of a group's tokens what is read of them after their chunk; then send the group's own.

        Args:
            read: c_0 to c_K and p_0 to p_K stacked along time, the gradient of the output, and what C was applied to.
            key_grad, value_grad, previous_grad: [b, S, ...], changed in place; the last is only set at power 0.
        """
        segment, (rights, points, grad, point) = self.segment, read
        S, K = segment.size, segment.power
        left, right = (rights, rights[:, S:], grad), (points, points[:, : K * S], point)
        is_parallel = segment.batch > segment.rows
        gram, lag, moment = self._after(left, right) if is_parallel else self.later
        symmetric = torch.add(gram, gram.mT, out=segment.buffer("symmetric", *gram.shape[1:]))
        key_grad.baddbmm_(group.key, symmetric).baddbmm_(group.value, moment)
        value_grad.baddbmm_(group.key, moment.mT)
        if segment.has_lag:
            key_grad.baddbmm_(group.previous_key, lag.mT)
            previous_grad.baddbmm_(group.key, lag, beta=1 if K else 0)
        if not is_parallel:
            for total, a, b, sign in zip(self.sent, left, right, (-1, 1, 1), strict=True):
                if a.shape[1] > 0:
                    total.baddbmm_(a.mT, b, alpha=sign)

    def _after(self, left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> list[Tensor]:
        """What all after each chunk sends to it, [b, ...]; sends what all chunks send to the segment's start."""
        segment = self.segment
        rows, n = segment.rows, segment.chunks
        found = []
        for i, (later, sent, sign) in enumerate(zip(self.later, self.sent, (-1, 1, 1), strict=True)):
            after = segment.buffer(f"after_{i}", *later.shape[1:]).view(rows, n, *later.shape[1:])
            found.append(after.flatten(0, 1))
            if left[i].shape[1] == 0:
                after.copy_(later.unsqueeze(1))
                continue
            own = torch.bmm(left[i].mT, right[i], out=segment.buffer("own", *later.shape[1:])).view_as(after)
            after[:, -1] = later
            for c in range(n - 1, 0, -1):
                torch.add(after[:, c], own[:, c], alpha=sign, out=after[:, c - 1])
            sent.add_(own.sum(dim=1), alpha=sign)
        return found
