"""Laws of the algebra: statistics add, split and subtract; the operator contracts; power 0 is ridge regression."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import IMPLEMENTATIONS, assert_same, make_case
from sklearn.linear_model import Ridge

from echo_ska.algebra import KoopmanOperator, RidgeFactor, SufficientStatistics


def statistics_of(case, begin, end):
    t = case.tensors
    weight = t.get("write_weight")
    return SufficientStatistics.from_tokens(
        t["key"][:, begin:end], t["value"][:, begin:end], None if weight is None else weight[:, begin:end]
    )


@pytest.mark.parametrize("cut", [1, 7, 39])
def test_adding_equals_reading_both(cut):
    case = make_case(40)
    joined = statistics_of(case, 0, cut) + statistics_of(case, cut, 40)
    assert_same(joined.tensors(), statistics_of(case, 0, 40).tensors(), 1e-13)


def test_adding_is_associative():
    case = make_case(30)
    a, b, c = (statistics_of(case, *bounds) for bounds in ((0, 4), (4, 5), (5, 30)))
    assert_same(((a + b) + c).tensors(), (a + (b + c)).tensors(), 1e-13)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_hold_no_more_memory_than_their_own(dtype, weighted):
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 1, 500, 2, 3, generator=generator, dtype=dtype)
    weight = torch.rand(1, 500, 2, generator=generator, dtype=dtype) if weighted else None
    statistics = SufficientStatistics.from_tokens(key, value, weight)
    storages = [tensor.untyped_storage() for tensor in statistics.tensors().values()]
    assert sum(storage.nbytes() for storage in storages) == statistics.nbytes
    before = statistics.clone()
    key.zero_()
    value.zero_()
    assert_same(statistics.tensors(), before.tensors(), 0.0)


def test_empty_statistics_are_the_identity_on_both_sides():
    some = statistics_of(make_case(9), 0, 9)
    empty = SufficientStatistics.empty(2, 2, 5, 3)
    assert_same((empty + some).tensors(), some.tensors(), 0.0)
    assert_same((some + empty).tensors(), some.tensors(), 0.0)
    assert_same((empty + empty).tensors(), empty.tensors(), 0.0)


@pytest.mark.parametrize("cut", [1, 20, 39])
def test_a_prefix_and_a_suffix_can_be_subtracted(cut):
    case = make_case(40)
    whole, first, second = (statistics_of(case, *bounds) for bounds in ((0, 40), (0, cut), (cut, 40)))
    without_prefix = whole.subtract_prefix(first, first_key=second.first_key)
    without_suffix = whole.subtract_suffix(second, previous_key=first.previous_key)
    assert_same(without_prefix.tensors(), second.tensors(), 1e-12)
    assert_same(without_suffix.tensors(), first.tensors(), 1e-12)


def test_subtracting_more_than_there_is_is_refused():
    case = make_case(8)
    short, long = statistics_of(case, 0, 3), statistics_of(case, 0, 8)
    with pytest.raises(ValueError, match="must be shorter than the whole"):
        short.subtract_prefix(long, first_key=long.first_key)
    with pytest.raises(ValueError, match="must be shorter than the whole"):
        short.subtract_suffix(short, previous_key=short.previous_key)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_final_state_holds_the_statistics_of_all_tokens(implementation):
    case = make_case(50)
    _, state = case.run(**IMPLEMENTATIONS[implementation])
    assert_same(state.statistics.tensors(), statistics_of(case, 0, 50).tensors(), 1e-13)
    assert state.position.tolist() == [50, 50]


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("kind", ["random", "correlated", "repeated", "large", "masked"])
def test_the_operator_contracts(kind, ridge):
    """||A||_2 < 1 whatever the keys: no spectral normalisation is needed."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        keys = torch.randn(2, 60, 2, 6, generator=generator, dtype=torch.float64)
        weight = None
        if kind == "correlated":
            keys = keys.cumsum(dim=1)
        elif kind == "repeated":
            keys = keys[:, torch.arange(60) % 3]
        elif kind == "large":
            keys = 1e3 * keys
        elif kind == "masked":
            weight = (torch.rand(2, 60, 2, generator=generator, dtype=torch.float64) > 0.5).double()
        statistics = SufficientStatistics.from_tokens(keys, keys, weight)
        operator = KoopmanOperator.of(RidgeFactor.of(statistics.gram, ridge), statistics.lag_moment)
        assert float(torch.linalg.matrix_norm(operator.matrix, ord=2).max()) < 1
        assert float(operator.eigenvalues().abs().max()) < 1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("time", [1, 7, 63, 130])
def test_power_zero_is_ridge_regression_without_intercept(implementation, time):
    """The last token's read is scikit-learn's prediction, fitted on all tokens with their weights."""
    case = make_case(time, batch=1, heads=1, rank=6, head_dim=4, power=0)
    output, _ = case.run(**IMPLEMENTATIONS[implementation])
    tokens = {name: t[0, :, 0].numpy() for name, t in case.tensors.items() if t.dim() > 1}
    peer = Ridge(alpha=float(case.tensors["ridge"]), fit_intercept=False)
    peer.fit(tokens["key"], tokens["value"], sample_weight=tokens["write_weight"])
    expected = float(case.tensors["scale"]) * torch.from_numpy(peer.predict(tokens["query"][-1:]))
    assert_same({"output": output[0, -1:, 0]}, {"output": expected}, 1e-9)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_power_one_looks_one_step_ahead(implementation):
    """On a cycle of orthogonal keys the operator maps each key to the next: the value read is the next one's."""
    keys = torch.eye(4, dtype=torch.float64)[torch.arange(41) % 4].reshape(1, 41, 1, 4)
    values = torch.arange(41, dtype=torch.float64).remainder(4).reshape(1, 41, 1, 1)
    case = make_case(41, batch=1, heads=1, rank=4, head_dim=1)
    case.tensors |= {"query": keys, "key": keys, "value": values, "ridge": torch.tensor(1e-9, dtype=torch.float64)}
    case.tensors["write_weight"] = case.tensors["scale"] = case.tensors["gain"] = torch.tensor(1.0).double()
    case.tensors["write_weight"] = torch.ones(1, 41, 1, dtype=torch.float64)
    for power in range(4):
        output, _ = case.run(power=power, **IMPLEMENTATIONS[implementation])
        assert float(output[0, -1]) == pytest.approx((0 + power) % 4, abs=0.5)


def test_repeated_and_zero_keys_at_the_least_ridge_stay_finite():
    case = make_case(200, rank=8).to(torch.float32)
    case.tensors["key"][:] = case.tensors["key"][:, :1]
    case.tensors["key"][:, 50:60] = 0.0
    case.tensors["ridge"] = torch.full((2,), 5e-4)
    for implementation in IMPLEMENTATIONS.values():
        output, _ = case.run(**implementation)
        assert output.isfinite().all()


def test_a_failed_factorisation_names_batch_and_head():
    gram = torch.eye(3).repeat(2, 4, 1, 1)
    gram[1, 2] = -5 * torch.eye(3)
    with pytest.raises(ArithmeticError, match=r"batch row 1, head 2 \(1 of 8 failed\): raise the ridge"):
        RidgeFactor.of(gram, 1.0).require_success()


def test_the_factor_solves():
    gram = F.normalize(torch.randn(3, 5, 5, dtype=torch.float64), dim=-1)
    gram = gram @ gram.mT
    rows = torch.randn(3, 2, 5, dtype=torch.float64)
    solved = RidgeFactor.of(gram, 0.3).require_success().solve(rows)
    expected = torch.linalg.solve(gram + 0.3 * torch.eye(5).double(), rows.mT).mT
    assert_same({"solved": solved}, {"solved": expected}, 1e-12)
