"""The associative memory as a scikit-learn regressor; needs the optional extra `sklearn`."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from echo_ska.memory.associative import AssociativeMemory

try:
    from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "AssociativeMemoryRegressor needs scikit-learn 1.6 or later: pip install 'echo-ska[sklearn]'"
    ) from error


class AssociativeMemoryRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge regression without an intercept that learns in pieces and keeps a state of fixed size.

    At `power` 0 it equals `sklearn.linear_model.Ridge(alpha=ridge, fit_intercept=False)`, however many calls of
    `partial_fit` the data came in. At a power K > 0 the rows are a series in time, and a prediction is that of the row
    expected K steps later: shuffling and cross-validation over shuffled rows then change what is fitted.

    Args:
        ridge, power, gain, blend: those of `AssociativeMemory`.

    Attributes:
        memory_: the `AssociativeMemory` behind it, to merge, save, or ask for its eigenvalues.
        n_features_in_: r.
        feature_names_in_: of the columns, where X was a data frame whose columns are all strings.
    """

    memory_: AssociativeMemory

    def __init__(self, ridge: float = 1.0, *, power: int = 0, gain: float = 1.0, blend: float | None = None) -> None:
        self.ridge = ridge
        self.power = power
        self.gain = gain
        self.blend = blend

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Forget what was learnt before and learn from X, [n, r], and y, [n] or [n, P].

        Args:
            X, y: real numbers.
            sample_weight: >= 0, [n] or a number, or None for 1.

        Raises:
            ValueError, TypeError: as scikit-learn's own estimators; or a setting is out of range.
        """
        return self._learn(X, y, sample_weight, first=True)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from further rows; arguments and errors as `fit`, and y must have as many columns as before.

        Settings that were changed since the call before hold for all rows, those learnt before included.
        """
        return self._learn(X, y, sample_weight, first=not hasattr(self, "memory_"))

    def predict(self, X: Any) -> np.ndarray:
        """The expected targets of X, [n, r]: [n] if there is one target, else [n, P], as Ridge; float64."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        predicted = self.memory_.read(X).cpu().numpy()
        return predicted[:, 0] if predicted.shape[1] == 1 else predicted

    def _learn(self, X: Any, y: Any, sample_weight: Any, *, first: bool) -> Self:
        X, y = validate_data(self, X, y, reset=first, dtype=np.float64, multi_output=True, y_numeric=True)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        targets = y.reshape(len(y), -1)
        settings = {name: getattr(self, name) for name in ("ridge", "power", "gain", "blend")}
        if first:
            memory = AssociativeMemory(X.shape[1], targets.shape[1], device="cpu", **settings)
        else:
            memory = self.memory_.fork(**settings)
            if targets.shape[1] != memory.settings.head_dim:
                raise ValueError(
                    f"y has {targets.shape[1]} targets and the calls before had {memory.settings.head_dim}: fit anew"
                )
        memory.write(X, targets, sample_weight)
        self.memory_ = memory
        return self
