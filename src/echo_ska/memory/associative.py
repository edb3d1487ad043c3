"""An associative memory: pairs of keys and values go in, and a fixed-size state answers queries in closed form."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Self

import torch
from torch import Tensor

from echo_ska import algebra
from echo_ska.algebra import KoopmanOperator, RidgeFactor, SufficientStatistics, accumulator_dtype
from echo_ska.memory.pairs import Rows, checked, from_tokens, pair_blocks, to_tokens
from echo_ska.memory.settings import MemorySettings
from echo_ska.sealed import read_sealed_file, write_sealed_file

KIND, VERSION = "associative memory", 1


class AssociativeMemory:
    """Ridge regression of values on keys, with a spectral filter of the keys' dynamics, in constant memory.

    What was written is kept as `SufficientStatistics` (docs/method.md): three sums and two keys, 2 r^2 + P r + 2 r
    float64 numbers a head, however many pairs there were. No gradient flows into what is written; to train through a
    read, use `echo_ska.ops`.

    Every tensor is [B, T, H, width] without the axes that the memory does not have. With neither `batch_size` nor
    `num_heads`, keys are a matrix [T, r] and values a matrix [T, P]. The order of pairs matters to `power` > 0 alone.
    Tensors, NumPy arrays (memory-mapped ones are read block by block) and nested lists are taken.

    Args:
        rank: r, width of keys and queries.
        head_dim: P, width of values.
        num_heads: H independent memories side by side, or None for one and no such axis.
        batch_size: B independent sequences side by side, or None for one and no such axis.
        ridge: > 0. As scikit-learn's `alpha`: it adds to the Gram matrix, whatever the number of pairs.
        power: K >= 0 applications of the Koopman operator before the value is read; 0 is plain ridge regression
            without an intercept, K > 0 looks K pairs ahead along the keys' dynamics.
        gain: > 0, factor of the operator.
        blend: in [0, 1]; reads (1 - blend) of the plain answer and blend of the filtered one. None: the filtered one.
        device: of the sums; float64, or float32 where a device has no float64.

    Raises:
        ValueError, TypeError: a setting is out of range; names it.

    Source: Sridhar & Johansen, arXiv 2605.06997; docs/method.md section 1.
    """

    def __init__(
        self,
        rank: int,
        head_dim: int,
        *,
        num_heads: int | None = None,
        batch_size: int | None = None,
        ridge: float = 1.0,
        power: int = 0,
        gain: float = 1.0,
        blend: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._settings = MemorySettings(rank, head_dim, num_heads, batch_size, ridge, power, gain, blend)
        self._device = torch.device(device or torch.get_default_device())
        self._statistics = self._empty()
        self._lag_is_exact = True

    @property
    def settings(self) -> MemorySettings:
        """Sizes, ridge, power, gain and blend; read-only (`fork` makes a copy that is read in another way)."""
        return self._settings

    @property
    def statistics(self) -> SufficientStatistics:
        """The sums themselves, [B, H, ...] with B or H 1 where the memory has no such axis."""
        return self._statistics

    @property
    def lag_is_exact(self) -> bool:
        """Whether the lag moment is that of the pairs stored, in order; False from the first `forget` on."""
        return self._lag_is_exact

    @property
    def count(self) -> int:
        """Pairs stored (of each sequence, if there is a batch). A pair of weight 0 counts."""
        return int(self._statistics.count[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the state; the same before and after anything is written."""
        return self._statistics.nbytes

    def write(self, keys: Rows, values: Rows, weights: Rows | None = None) -> None:
        """Add pairs, after those already written. Written in pieces or at once, the sums are the same.

        Args:
            keys: [T, r]; [B, T, H, r] with batch and heads. T may be 0.
            values: [T, P]; [B, T, H, P].
            weights: >= 0, [T]; [B, T, H], or None for 1. A pair of weight w counts w times in the regression. In the
                lag moment both keys of a step carry the root of their weight, so a weight of 0 breaks the step into it
                and the one out of it.

        Raises:
            ValueError, TypeError: shapes, dtypes or numbers of pairs do not fit, or a number is not finite. Nothing of
                the call is written then.
        """
        self._install(self._accumulate(self._statistics, keys, values, weights), self._lag_is_exact)

    def read(self, queries: Rows) -> Tensor:
        """y = C L^-T f(A) L^-1 q for every query, computed in the dtype of the sums.

        Each call factors the Gram matrix once, O(H r^3): ask many queries in one call. Nothing is changed.

        Args:
            queries: [m, r]; [B, m, H, r] with batch and heads.

        Returns:
            [m, P]; [B, m, H, P], in the queries' dtype if they are a floating-point tensor, else in that of the sums;
            on the memory's device. 0 while nothing is written. Gradients flow to the queries.

        Raises:
            ValueError, TypeError: the queries do not fit.
            ArithmeticError: the Gram matrix plus the ridge is not positive definite: raise the ridge.
        """
        settings, gram = self._settings, self._statistics.gram
        array = checked(queries, "queries", settings, settings.rank)
        answers = algebra.read(
            self._statistics,
            to_tokens(array, settings, self._device, gram.dtype).transpose(1, 2),  # [B, H, m, r]
            ridge=torch.tensor(settings.ridge, dtype=gram.dtype, device=self._device),
            power=settings.power,
            gain=settings.gain,
            blend=None if settings.blend is None else gram.new_full((1,), settings.blend),
        )
        answers = from_tokens(answers.transpose(1, 2), settings)
        return answers.to(array.dtype) if isinstance(array, Tensor) and array.is_floating_point() else answers

    def merge(self, other: AssociativeMemory) -> None:
        """Append what `other` stores: afterwards this memory is one that wrote its own pairs and then other's.

        Exact, the step from this memory's last key to other's first one included. `other` is not changed; its ridge,
        power, gain and blend do not matter, since they belong to the read.

        Raises:
            ValueError: the sizes differ; or the lag moment of `other` is not exact and this power is not 0; or the sums
                leave their dtype's range. Nothing is changed then.
        """
        merged = self._in_range(self._statistics + self._like(other))
        self._install(merged, self._lag_is_exact and other.lag_is_exact)

    def forget(self, keys: Rows, values: Rows, weights: Rows | None = None) -> None:
        """Take away pairs that were written, wherever they stood: exact in the Gram matrix and the value moment.

        At power 0 the memory then reads as if they had never been written (up to rounding, about 1e-16 times the
        largest sum there ever was over the ridge).

        The lag moment is left as it is, and so are the first and the last key: which keys stood beside a forgotten one
        is not stored, so its two steps, and the step that would close the gap, cannot be told from the rest. Therefore
        a memory whose power is not 0 refuses to forget, and one that has forgotten (`lag_is_exact` is False) refuses
        another power than 0 and `koopman_eigenvalues`, until everything is forgotten. With the order kept, take
        contexts away by `subtract_prefix` and `subtract_suffix`, or merge the parts that stay.

        Args:
            keys, values, weights: as they were written, in any order.

        Raises:
            ValueError, TypeError: as `write`; or this memory's power is not 0; or these pairs cannot all have been
                written, as far as the sums tell: what is left would be of no pairs at all. Nothing is changed then.
        """
        if self._settings.power > 0:
            raise ValueError(
                f"a memory of power {self._settings.power} cannot forget pairs, since the keys beside them are not "
                "stored: use subtract_prefix or subtract_suffix, or fork(power=0)"
            )
        whole = self._statistics
        part = self._accumulate(self._empty(), keys, values, weights)
        if not int(part.count[0]):
            return
        remaining = dataclasses.replace(
            whole,
            gram=whole.gram - part.gram,
            value_moment=whole.value_moment - part.value_moment,
            count=whole.count - part.count,
        )
        self._require_written(remaining, self._squares(keys, values, weights))
        emptied = int(remaining.count[0]) == 0
        self._install(self._empty() if emptied else remaining, emptied)

    def subtract_prefix(self, prefix: AssociativeMemory, first_key: Rows) -> None:
        """Take away the pairs at the beginning: this memory = prefix + rest becomes the rest, lag moment included.

        Args:
            prefix: a memory of those pairs; shorter than this one, and not changed.
            first_key: the key (times the root of its weight) of the first pair that stays, [r]; [B, H, r]. It stands in
                no sum by itself; a memory of the rest has it as `statistics.first_key`.

        Raises:
            ValueError, TypeError: sizes differ, or `prefix` is as long as this memory, or cannot be a part of it.
        """
        key = self._boundary_key(first_key, "first_key")
        self._subtract(self._statistics.subtract_prefix(self._like(prefix), key), prefix)

    def subtract_suffix(self, suffix: AssociativeMemory, previous_key: Rows) -> None:
        """Take away the pairs at the end: this memory = rest + suffix becomes the rest, lag moment included.

        Args:
            suffix: a memory of those pairs; shorter than this one, and not changed.
            previous_key: the key (times the root of its weight) of the last pair that stays, [r]; [B, H, r]. A memory
                of the rest has it as `statistics.previous_key`.

        Raises:
            ValueError, TypeError: sizes differ, or `suffix` is as long as this memory, or cannot be a part of it.
        """
        key = self._boundary_key(previous_key, "previous_key")
        self._subtract(self._statistics.subtract_suffix(self._like(suffix), key), suffix)

    def koopman_eigenvalues(self, *, exclude_last: bool = True, ridge: float = 0.0) -> Tensor:
        """The eigenvalues of the linear map from one key to the next, M (G + ridge I)^-1.

        With the defaults these are those of exact DMD on the series of keys, and of EDMD where keys are observables
        of a state: the last key, which has no successor, is left out of G. Their angle is the frequency of a mode in
        radians a step, their modulus its growth a step. G squares the keys: the error is about 1e-16 times the square
        of their condition number (with columns of norm 1). Merged memories are one series; weights other than 1 weigh
        both ends of a step.

        Args:
            exclude_last: leave the last key out of G. False: the operator that `read` applies, inside the unit disk.
            ridge: >= 0; 0 needs keys that span all directions.

        Returns:
            [r]; [B, H, r] with batch and heads, complex, in no particular order.

        Raises:
            ValueError: fewer than two pairs; or pairs were forgotten; or the ridge is 0 and G has not full rank.
        """
        statistics, rank = self._statistics, self._settings.rank
        if not self._lag_is_exact:
            raise ValueError("this memory has forgotten pairs, so it no longer knows which key followed which")
        if self.count < 2:
            raise ValueError(f"the map from a key to the next needs at least two pairs, and there are {self.count}")
        if not ridge >= 0:
            raise ValueError(f"ridge must be at least 0 and is {ridge}")
        gram = statistics.gram
        if exclude_last:
            gram = gram - statistics.previous_key.unsqueeze(-1) * statistics.previous_key.unsqueeze(-2)
        if ridge == 0:
            spanned = _rank(gram, statistics.gram)
            if spanned < rank:
                raise ValueError(
                    f"without a ridge the keys must span all {rank} directions and these span {spanned}: "
                    "write more pairs, or give a ridge above 0"
                )
        factor = RidgeFactor.of(gram, ridge).require_success()
        eigenvalues = KoopmanOperator.of(factor, statistics.lag_moment).eigenvalues()  # [B, H, r]
        return from_tokens(eigenvalues.unsqueeze(1), self._settings).squeeze(self._settings.time_axis)

    def fork(self, **settings: Any) -> Self:
        """A copy that shares nothing with this memory.

        Args:
            settings: `ridge`, `power`, `gain` or `blend` where the copy is to be read in another way. Nothing needs
                to be written again for that: they are no part of what is stored.

        Raises:
            TypeError: another name.
            ValueError: a setting is out of range; or the power is above 0 and this memory has forgotten pairs.
        """
        if unknown := settings.keys() - {"ridge", "power", "gain", "blend"}:
            raise TypeError(f"fork changes ridge, power, gain or blend, not {', '.join(sorted(unknown))}")
        copy = self._bare(dataclasses.replace(self._settings, **settings), self._device)
        copy._install(self._statistics.clone(), self._lag_is_exact)
        return copy

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the memory to one sealed safetensors file (`echo_ska.sealed`), whole or not at all.

        Raises:
            FileExistsError: there is such a file, and `overwrite` is False.
            OSError: it cannot be written.
        """
        metadata = {"settings": dataclasses.asdict(self._settings), "lag_is_exact": self._lag_is_exact}
        write_sealed_file(path, self._statistics.tensors(), metadata, kind=KIND, version=VERSION, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Self:
        """Read a memory that `save` wrote, to the last bit.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged, foreign, or of another format version; says which.
        """
        tensors, metadata = read_sealed_file(path, kind=KIND, version=VERSION)
        memory = cls._bare(MemorySettings(**metadata["settings"]), torch.device(device or torch.get_default_device()))
        dtype = accumulator_dtype(memory._device)
        loaded = {
            name: tensor.to(device=memory._device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in tensors.items()
        }
        memory._install(SufficientStatistics(**loaded), metadata["lag_is_exact"])
        return memory

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(self._settings).items())
        return f"{type(self).__name__}({settings}, count={self.count})"

    @classmethod
    def _bare(cls, settings: MemorySettings, device: torch.device) -> Self:
        memory = cls.__new__(cls)
        memory._settings, memory._device = settings, device
        return memory

    def _install(self, statistics: SufficientStatistics, lag_is_exact: bool) -> None:
        """The one place where the state changes: whole, and only if it can be read at this power."""
        if self._settings.power > 0 and not lag_is_exact:
            raise ValueError(
                f"power {self._settings.power} reads the order of the keys, and pairs were forgotten: use power 0"
            )
        self._statistics, self._lag_is_exact = statistics, lag_is_exact

    def _empty(self) -> SufficientStatistics:
        sizes = self._settings
        return SufficientStatistics.empty(
            sizes.batch_size or 1, sizes.num_heads or 1, sizes.rank, sizes.head_dim, device=self._device
        )

    @torch.no_grad()
    def _accumulate(
        self, start: SufficientStatistics, keys: Rows, values: Rows, weights: Rows | None
    ) -> SufficientStatistics:
        dtype = accumulator_dtype(self._device)
        for block in pair_blocks(keys, values, weights, self._settings, self._device, dtype):
            start = start + SufficientStatistics.from_tokens(*block)
        return self._in_range(start)

    def _in_range(self, sums: SufficientStatistics) -> SufficientStatistics:
        if not all(bool(tensor.isfinite().all()) for tensor in sums.tensors().values()):
            raise ValueError(f"the sums leave the range of {sums.gram.dtype}: scale keys and values down")
        return sums

    def _like(self, other: AssociativeMemory) -> SufficientStatistics:
        """The statistics of a memory of the same sizes, on this device."""
        sizes = ("rank", "head_dim", "num_heads", "batch_size")
        for name in sizes:
            mine, theirs = getattr(self._settings, name), getattr(other.settings, name)
            if mine != theirs:
                raise ValueError(f"the memories must have the same sizes, and {name} is {mine} here and {theirs} there")
        return other.statistics.to(self._device)

    def _boundary_key(self, key: Rows, name: str) -> Tensor:
        """A key of every sequence and head, given as users shape it or as the statistics hold it."""
        settings, like = self._settings, self._statistics.first_key
        given = torch.as_tensor(key)
        expected = [size for size in (settings.batch_size, settings.num_heads, settings.rank) if size is not None]
        if given.shape != like.shape and list(given.shape) != expected:
            raise ValueError(f"{name} must have the shape {expected} and has {list(given.shape)}")
        if not bool(given.isfinite().all()):
            raise ValueError(f"{name} must be finite")
        return given.detach().to(like).reshape(like.shape)

    def _subtract(self, remaining: SufficientStatistics, part: AssociativeMemory) -> None:
        self._require_written(remaining)
        self._install(remaining, self._lag_is_exact and part.lag_is_exact)

    def _squares(self, keys: Rows, values: Rows, weights: Rows | None) -> Tensor:
        """The weighted sum of the values' squares, [B, H]."""
        squares = self._statistics.gram.new_zeros(self._statistics.gram.shape[:2])
        for _, value, weight in pair_blocks(keys, values, weights, self._settings, self._device, squares.dtype):
            each = value.square().sum(-1)  # [B, S, H]
            squares = squares + (each if weight is None else weight * each).sum(1)
        return squares

    def _require_written(self, remaining: SufficientStatistics, squares: Tensor | None = None) -> None:
        """Refuse to take away what cannot have been written.

        A Gram matrix is never indefinite, and the value moment lies in its range: where there is no key, there is no
        value either.

        Args:
            remaining: what would stay.
            squares: of the values that would go, [B, H]; where they are not known, their moment stands for them.
        """
        whole = self._statistics
        least = torch.linalg.eigvalsh(remaining.gram)[..., 0]
        allowed = 1e-10 * whole.gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        left = remaining.gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        count = int(remaining.count[0])
        foreign = count < 0 or bool((least < -allowed).any()) or (count == 0 and bool((left > allowed).any()))
        if foreign or bool((_stray_values(whole, remaining, squares) > 0).any()):
            raise ValueError(
                f"these {self.count - count} pairs cannot all be among the {self.count} stored here: pass keys, values "
                "and weights as they were written"
            )


def _stray_values(whole: SufficientStatistics, remaining: SufficientStatistics, squares: Tensor | None) -> Tensor:
    """By how much the value moment of `remaining` leaves the range of its Gram matrix, less what rounding explains.

    A direction counts as outside where the keys' squares are 1e-14 of all; keys may still have the root of that there,
    and their values with it, hence the allowance. The units of the keys' columns do not matter.

    Returns:
        [B, H], above 0 where values are left that belong to no key.
    """
    scale = whole.gram.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(scale > 0, torch.where(scale > 0, scale, 1.0).rsqrt(), 0.0)  # [B, H, r]
    spread, directions = torch.linalg.eigh(scale.unsqueeze(-1) * remaining.gram * scale.unsqueeze(-2))
    outside = spread <= (1e-14 * scale.shape[-1] if int(remaining.count[0]) else torch.inf)
    stored, left = whole.value_moment * scale.unsqueeze(-2), remaining.value_moment * scale.unsqueeze(-2)
    stray = torch.where(outside.unsqueeze(-2), left @ directions, 0.0).norm(dim=(-2, -1))
    gone = (stored - left).norm(dim=(-2, -1))
    if squares is not None:  # sums of values that cancel say nothing of their rounding
        keys = (whole.gram - remaining.gram).diagonal(dim1=-2, dim2=-1) * scale.square()
        gone = torch.maximum(gone, (keys.sum(-1).clamp_min(0) * squares).sqrt())
    return stray - 1e-5 * torch.maximum(gone, stored.norm(dim=(-2, -1)))


def _rank(gram: Tensor, whole: Tensor) -> int:
    """The least number of directions that a Gram matrix spans, whatever the units of its columns.

    Args:
        gram: [B, H, r, r]; what is left of `whole`, whose rounding it carries.
    """
    tolerance = 10 * gram.shape[-1] * torch.finfo(gram.dtype).eps
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    present = diagonal > tolerance * whole.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(present, torch.where(present, diagonal, 1.0).rsqrt(), 0.0)
    correlation = scale.unsqueeze(-1) * gram * scale.unsqueeze(-2)
    return int(torch.linalg.matrix_rank(correlation, hermitian=True, rtol=tolerance).min())
