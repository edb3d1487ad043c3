"""The regressor is a scikit-learn estimator by scikit-learn's own checks, and equals its Ridge without intercept."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from echo_ska.memory import AssociativeMemory, AssociativeMemoryRegressor


def data(rows=80, targets=(), seed=0):
    numbers = np.random.default_rng(seed)
    X = numbers.standard_normal((rows, 6))
    y = X @ numbers.standard_normal((6, *targets)) + 0.3 * numbers.standard_normal((rows, *targets))
    return X, y, numbers.uniform(0, 3, rows)


def test_it_passes_the_checks_of_scikit_learn():
    results = check_estimator(AssociativeMemoryRegressor(), on_skip=None)
    passed = [result["check_name"] for result in results if result["status"] == "passed"]
    skipped = {result["check_name"] for result in results if result["status"] == "skipped"}
    assert len(passed) + len(skipped) == len(results)
    assert "check_sample_weight_equivalence_on_dense_data" in passed
    assert "check_regressor_multioutput" in passed


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("weighting", ["none", "one number", "some zero"])
@pytest.mark.parametrize("targets", [(), (1,), (4,)])
def test_it_equals_ridge_without_intercept(targets, weighting, ridge):
    X, y, weights = data(targets=targets)
    weights[::5] = 0.0
    sample_weight = {"none": None, "one number": 2.5, "some zero": weights}[weighting]
    peer = Ridge(alpha=ridge, fit_intercept=False).fit(X, y, sample_weight)
    estimator = AssociativeMemoryRegressor(ridge).fit(X, y, sample_weight)
    unseen = data(seed=1)[0]
    found = estimator.predict(unseen)
    assert found.shape == peer.predict(unseen).shape  # Ridge gives [n] for a column of targets too
    np.testing.assert_allclose(found, peer.predict(unseen), rtol=1e-9, atol=1e-9)
    assert estimator.score(X, y) == pytest.approx(peer.score(X, y), abs=1e-9)


@pytest.mark.parametrize("settings", [{}, {"power": 2, "gain": 0.8, "blend": 0.4}])
def test_learning_in_pieces_equals_learning_at_once(settings):
    """To 1e-12: the sums are added in another order."""
    X, y, weights = data(targets=(2,))
    whole = AssociativeMemoryRegressor(**settings).fit(X, y, weights)
    pieces = AssociativeMemoryRegressor(**settings)
    for begin in range(0, 80, 17):
        piece = slice(begin, begin + 17)
        pieces.partial_fit(X[piece], y[piece], weights[piece])
        assert pieces.memory_.nbytes == whole.memory_.nbytes
    np.testing.assert_allclose(pieces.predict(X), whole.predict(X), rtol=1e-12, atol=1e-12)
    refitted = pieces.fit(X, y, weights)  # begins anew
    np.testing.assert_array_equal(refitted.predict(X), whole.predict(X))


def test_settings_changed_between_pieces_hold_for_all_rows():
    X, y, _ = data()
    estimator = AssociativeMemoryRegressor(1e3).partial_fit(X[:50], y[:50])
    estimator.set_params(ridge=0.1).partial_fit(X[50:], y[50:])
    expected = AssociativeMemoryRegressor(0.1).fit(X, y).predict(X)
    np.testing.assert_allclose(estimator.predict(X), expected, rtol=1e-12, atol=1e-12)


def test_a_power_predicts_rows_ahead():
    """On a noiseless rotation the target of the row `power` steps later is known exactly."""
    angles = 0.3 * np.arange(200)
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for power in (0, 1, 3):
        estimator = AssociativeMemoryRegressor(1e-9, power=power).fit(X, X[:, 0])
        ahead = np.cos(angles + 0.3 * power)
        # the last row stands in the Gram matrix without a successor, which costs about 1 / 200 a step
        np.testing.assert_allclose(estimator.predict(X), ahead, atol=0.02 * power + 1e-6)


def test_its_memory_is_the_associative_memory():
    X, y, _ = data()
    memory = AssociativeMemory(6, 1, ridge=2.0)
    memory.write(X, y[:, None])
    estimator = AssociativeMemoryRegressor(2.0).fit(X, y)
    np.testing.assert_array_equal(estimator.predict(X), memory.read(X).numpy()[:, 0])
    assert repr(estimator.memory_) == repr(memory)


def test_it_works_in_pipelines_and_searches():
    X, y, _ = data(rows=200)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), AssociativeMemoryRegressor()),
        {"associativememoryregressor__ridge": [1e-2, 1e4]},
    ).fit(X, y)
    assert search.best_params_ == {"associativememoryregressor__ridge": 1e-2}
    assert search.best_score_ > 0.8
    assert clone(AssociativeMemoryRegressor(3.0, power=1)).get_params() == {
        "ridge": 3.0,
        "power": 1,
        "gain": 1.0,
        "blend": None,
    }


def test_bad_calls_are_refused_and_nothing_is_lost():
    X, y, weights = data()
    estimator = AssociativeMemoryRegressor().fit(X, y)
    before = estimator.predict(X)
    with pytest.raises(ValueError, match="y has 2 targets and the calls before had 1: fit anew"):
        estimator.partial_fit(X, np.stack([y, y], axis=1))
    with pytest.raises(ValueError, match="X has 5 features"):
        estimator.partial_fit(X[:, :5], y)
    with pytest.raises(ValueError, match="weights must not be negative"):
        estimator.partial_fit(X, y, -weights)
    np.testing.assert_array_equal(estimator.predict(X), before)
    with pytest.raises(ValueError, match=r"ridge must be above 0 and is 0\.0"):
        AssociativeMemoryRegressor(0.0).fit(X, y)
    with pytest.raises(TypeError, match="power must be an integer"):
        AssociativeMemoryRegressor(power=0.5).fit(X, y)


def test_the_room_needs_scikit_learn_for_the_estimator_alone():
    code = (
        "import sys\n"
        "for name in ('sklearn', 'transformers', 'triton', 'matplotlib'): sys.modules[name] = None\n"
        "import torch, echo_ska.memory\n"
        "memory = echo_ska.memory.AssociativeMemory(2, 1)\n"
        "memory.write(torch.eye(2), torch.ones(2, 1))\n"
        "assert memory.read(torch.eye(2)).tolist() == [[0.5], [0.5]]\n"
        "try:\n"
        "    echo_ska.memory.AssociativeMemoryRegressor\n"
        "except ImportError as error:\n"
        "    assert \"pip install 'echo-ska[sklearn]'\" in str(error), error\n"
        "else:\n"
        "    raise AssertionError('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
