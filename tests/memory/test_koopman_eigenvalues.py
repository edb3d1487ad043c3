"""The eigenvalues of the keys' dynamics are those of exact DMD and EDMD, as deeptime computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from echo_ska.memory import AssociativeMemory

# A growing oscillation, a decaying one, and a real mode; the keys are a mixture of them.
MODES = [1.01 * np.exp(0.3j), 0.95 * np.exp(1.1j), 0.8]


def noisy_linear_system(steps, seed=0, noise=0.05):
    """x_{t+1} = A x_t + noise, [steps, 5]; A has the eigenvalues MODES and the conjugates of the first two."""
    numbers = np.random.default_rng(seed)
    blocks = np.zeros((5, 5))
    for place, mode in zip((0, 2), MODES[:2], strict=True):
        blocks[place : place + 2, place : place + 2] = [[mode.real, -mode.imag], [mode.imag, mode.real]]
    blocks[4, 4] = MODES[2]
    mixture = numbers.standard_normal((5, 5))
    matrix = mixture @ blocks @ np.linalg.inv(mixture)
    states = [numbers.standard_normal(5)]
    for _ in range(steps - 1):
        states.append(matrix @ states[-1] + noise * numbers.standard_normal(5))
    return np.array(states)


def memory_of(keys, **settings):
    memory = AssociativeMemory(keys.shape[-1], 1, **settings)
    memory.write(keys, np.zeros((*keys.shape[:-1], 1)))
    return memory


def assert_same_eigenvalues(found, expected, tolerance=1e-9):
    found, expected = np.sort_complex(np.asarray(found)), np.sort_complex(np.asarray(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def decomposition():
    return pytest.importorskip("deeptime.decomposition", reason="deeptime has no wheels for this Python")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [7, 60, 400])
def test_they_are_those_of_exact_dmd(decomposition, steps, seed):
    """To the rounding of G: eps times the square of the condition number of the keys (columns of norm 1)."""
    series = noisy_linear_system(steps, seed)
    peer = decomposition.DMD(mode="exact").fit_fetch((series[:-1], series[1:]))
    condition = np.linalg.cond(series[:-1] / np.linalg.norm(series[:-1], axis=0))
    tolerance = 4 * np.finfo(np.float64).eps * condition**2
    assert tolerance < 1e-7
    assert_same_eigenvalues(memory_of(series).koopman_eigenvalues(), peer.eigenvalues, tolerance)


def test_they_are_those_of_edmd_where_keys_are_observables(decomposition):
    from deeptime.basis import Monomials

    series = [np.array([1.0, 0.5])]
    numbers = np.random.default_rng(0)
    for _ in range(300):  # a slow manifold: x decays, y is drawn to x^2
        x, y = series[-1]
        series.append(np.array([0.9 * x, 0.5 * y + 0.4 * x * x]) + 0.1 * numbers.standard_normal(2))
    observables, series = Monomials(2, 2), np.array(series)
    peer = decomposition.EDMD(observables).fit_fetch((series[:-1], series[1:]))
    memory = memory_of(np.asarray(observables(series)))
    assert memory.settings.rank == 6
    assert_same_eigenvalues(memory.koopman_eigenvalues(), peer.eigenvalues)


def test_parts_that_were_merged_are_one_series(decomposition):
    series = noisy_linear_system(200)
    memory, second = memory_of(series[:80]), memory_of(series[80:])
    memory.merge(second)
    peer = decomposition.DMD(mode="exact").fit_fetch((series[:-1], series[1:]))
    assert_same_eigenvalues(memory.koopman_eigenvalues(), peer.eigenvalues)


def test_without_noise_they_are_the_system_s():
    found = memory_of(noisy_linear_system(40, noise=0.0)).koopman_eigenvalues()
    assert_same_eigenvalues(found, [*MODES, *np.conj(MODES[:2])], 1e-6)


def test_each_sequence_and_head_has_its_own():
    series = np.array([[noisy_linear_system(50, seed=2 * row + head) for head in range(2)] for row in range(3)])
    memory = memory_of(np.moveaxis(series, 2, 1), batch_size=3, num_heads=2)
    found = memory.koopman_eigenvalues()
    assert found.shape == (3, 2, 5)
    for row in range(3):
        for head in range(2):
            assert_same_eigenvalues(found[row, head], memory_of(series[row, head]).koopman_eigenvalues())
    heads = memory_of(np.moveaxis(series[0], 1, 0), num_heads=2).koopman_eigenvalues()
    batch = memory_of(series[:, 0], batch_size=3).koopman_eigenvalues()
    assert (heads.shape, batch.shape) == ((2, 5), (3, 5))


def test_those_of_the_read_lie_inside_the_unit_disk():
    """All keys in G, and a ridge: the operator that `read` applies, whatever grows in the series."""
    series = noisy_linear_system(100, noise=0.0)
    memory = memory_of(series)
    found = memory.koopman_eigenvalues(exclude_last=False, ridge=0.5)
    gram, lag_moment = series.T @ series, series[1:].T @ series[:-1]
    expected = np.linalg.eigvals(lag_moment @ np.linalg.inv(gram + 0.5 * np.eye(5)))
    assert_same_eigenvalues(found, expected)
    assert float(found.abs().max()) < 1 < float(memory.koopman_eigenvalues().abs().max())


@pytest.mark.parametrize("count", [10, 1000, 100_000])
@pytest.mark.parametrize("rank", [2, 6])
def test_keys_that_do_not_span_all_directions_need_a_ridge(rank, count):
    numbers = np.random.default_rng(count)
    keys = numbers.standard_normal((count, rank - 1)) @ numbers.standard_normal((rank - 1, rank))
    memory = memory_of(keys)
    with pytest.raises(ValueError, match=f"keys must span all {rank} directions and these span {rank - 1}"):
        memory.koopman_eigenvalues()
    assert bool(memory.koopman_eigenvalues(ridge=1e-3).isfinite().all())


def test_a_direction_of_the_last_key_alone_is_not_spanned():
    keys = np.array([[1.0, 0.0], [0.5, 0.0], [0.3, 0.7]])
    with pytest.raises(ValueError, match="span all 2 directions and these span 1"):
        memory_of(keys).koopman_eigenvalues()
    assert bool(memory_of(keys).koopman_eigenvalues(exclude_last=False).isfinite().all())


def test_a_direction_that_drowned_in_the_last_key_s_rounding_is_not_spanned():
    keys = np.random.default_rng(0).standard_normal((20, 2)) * np.array([1.0, 1e-8])
    keys[-1] = 1.0  # its square, 1, stands in G beside squares of 1e-16
    with pytest.raises(ValueError, match="span all 2 directions and these span 1"):
        memory_of(keys).koopman_eigenvalues()


def test_the_units_of_the_keys_do_not_matter(decomposition):
    series = noisy_linear_system(200)
    expected = decomposition.DMD(mode="exact").fit_fetch((series[:-1], series[1:])).eigenvalues
    found = memory_of(series * np.array([1e-9, 1.0, 1e9, 1e3, 1e-3])).koopman_eigenvalues()
    assert_same_eigenvalues(found, expected)


def test_too_short_a_series_and_bad_settings_are_refused():
    series = noisy_linear_system(5)
    with pytest.raises(ValueError, match="needs at least two pairs, and there are 1"):
        memory_of(series[:1]).koopman_eigenvalues()
    with pytest.raises(ValueError, match="span all 5 directions and these span 4"):
        memory_of(series).koopman_eigenvalues()  # five keys, the last of which is left out
    for ridge in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="ridge must be at least 0"):
            memory_of(series).koopman_eigenvalues(ridge=ridge)


def test_asking_changes_nothing():
    memory = memory_of(noisy_linear_system(50))
    before = memory.fork().statistics.tensors()
    memory.koopman_eigenvalues()
    for name, tensor in memory.statistics.tensors().items():
        assert torch.equal(tensor, before[name])
