"""Counted operations of the routes: a multiplication and an addition are two, and only products of matrices count.

Products with the S x S scores of a chunk are counted in full where the route computes them in full and masks them
afterwards. Of what a backward pass computes again, the scores of attention and of linear attention are counted, whose
backward passes always do so; what SKA's does, which depends on the size of the call, is not, nor is its whitening.
"""

from __future__ import annotations

from dataclasses import dataclass

EXACT_CHUNK = 32
LINEAR_CHUNK = 64


@dataclass(frozen=True)
class Operations:
    """Operations of one sequence, all heads."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Of forward and backward together."""
        return self.forward + self.backward


def exact_read(
    tokens: int, *, heads: int, rank: int, head_dim: int, power: int, chunk_size: int = EXACT_CHUNK
) -> Operations:
    """SKA's exact causal read by chunks of S tokens (docs/method.md section 3).

    The letters in the comments are that section's, J = (G + ridge I)^-1 before the chunk and H = X J.
    """
    r, P, S, K = rank, head_dim, chunk_size, power
    enter = 2 * r * r + 2 * S * r + 2 * S * r  # H, X H^T, B^-1 H
    solve = 2 * r * r + 4 * S * r  # Y J, Y W^T, (.) W
    advance = 2 * r * r + 4 * S * r  # p M^T, p X_prev^T, (.) X
    read = 2 * r * P + 2 * S * r + 2 * S * P  # p C^T, p X^T, (.) V
    update = 4 * r * r + 2 * r * P  # J, M, C
    forward = enter + (K + 1) * solve + K * advance + read + update
    # Through the read to p_K, the values, the keys and the sum that carries C's gradient.
    unread = 8 * r * P + 6 * S * r + 4 * S * P
    # A solve is its own adjoint; G's gradient takes a product for its sum, and four for the chunk's own keys.
    unsolve = solve + 2 * r * r + 8 * S * r
    # Through M to p, the sum that carries M's gradient, and the chunk's own pairs of keys.
    unadvance = 4 * r * r + 8 * S * r
    to_keys = 2 * r * r + (4 * r * r if K else 0)  # the carried gradients of G and M, once a token
    backward = unread + (K + 1) * unsolve + K * unadvance + to_keys
    return Operations(float(tokens * heads * forward), float(tokens * heads * backward))


def chunk_causal_read(
    tokens: int, *, heads: int, rank: int, head_dim: int, power: int, refresh_interval: int
) -> Operations:
    """SKA's chunk-causal read: one factorisation a chunk, then every query for itself.

    A Cholesky factor of r x r and the inverse of a triangle take r^3 / 3 each. The backward pass takes two products
    for each of the forward pass.
    """
    r, P, K = rank, head_dim, power
    sums = 4 * r * r + 2 * r * P  # G, M, C
    a_chunk = 2 * r**3 / 3 + (4 * r**3 if K else 0) + 2 * r * r * P  # L and L^-1; L^-1 M L^-T; C L^-T
    a_token = 2 * r * r + K * 2 * r * r + 2 * r * P  # L^-1 q, K times A, the read
    forward = tokens * heads * (sums + a_token + a_chunk / refresh_interval)
    return Operations(forward, 2 * forward)


def softmax_attention(tokens: int, *, heads: int, head_dim: int) -> Operations:
    """Causal softmax attention: only the pairs s <= t, two products forward, five backward (scores once more)."""
    pairs = tokens * (tokens + 1) / 2
    forward = heads * pairs * 4 * head_dim
    return Operations(forward, 2.5 * forward)


def linear_attention(
    tokens: int, *, heads: int, rank: int, head_dim: int, chunk_size: int = LINEAR_CHUNK
) -> Operations:
    """Causal linear attention by chunks; the backward pass computes the scores once more."""
    r, P, S = rank, head_dim, chunk_size
    forward = 2 * S * r + 2 * S * P + 4 * r * P  # scores, times values, reading the state, writing it
    backward = 6 * S * r + 4 * S * P + 8 * r * P
    return Operations(float(tokens * heads * forward), float(tokens * heads * backward))


def state_space_scan(tokens: int, *, heads: int, head_dim: int, state_size: int, chunk_size: int) -> Operations:
    """Mamba-2's scan by chunks, one B/C group: the scores are shared by the heads. Decays are not counted."""
    P, N, Q = head_dim, state_size, chunk_size
    forward = float(tokens * (2 * Q * N + heads * (2 * Q * P + 4 * P * N)))
    return Operations(forward, 2 * forward)
