"""In-context linear regression: sequences of pairs, and what the two textbook algorithms predict from them.

A sequence is a regression of its own: y_i = W x_i + noise, with W drawn for it. A pair stands in one token, and before
it stands its question, whose answer is to be predicted from the pairs before it:

    token       x_0 ?    x_0 y_0    x_1 ?    x_1 y_1    ...    x_n ?
    x slots     x_0      x_0        x_1      x_1               x_n
    y slots     0        y_0        0        y_1               0
    known slot  0        1          0        1                 0
    pairs seen  0                   1                          n

So one sequence asks at every number of pairs from 0 to n. Points are uniform on the sphere of radius sqrt(d), the
entries of W normal with variance 1 / d: every coordinate of x, and every W x, has variance 1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_ska.training.data import rows_of_part, step_generator


@dataclass(frozen=True)
class Regressions:
    """Some regressions; question i is answered from the pairs before i.

    Attributes:
        points: x, [B, n + 1, d].
        answers: y, [B, n + 1, P].
        means: W x, [B, n + 1, P].
    """

    points: Tensor
    answers: Tensor
    means: Tensor

    def tokens(self) -> Tensor:
        """What a model reads, [B, 2 n + 1, d + P + 1]: questions at even places, pairs at odd ones (see above)."""
        pairs = torch.cat([self.points, self.answers, torch.ones_like(self.points[..., :1])], dim=-1)
        questions = torch.cat([self.points, torch.zeros_like(pairs[..., self.points.shape[-1] :])], dim=-1)
        # The last pair would come after the last question.
        return torch.stack([questions, pairs], dim=2).flatten(1, 2)[:, :-1]


@dataclass(frozen=True)
class InContextRegression:
    """The family of regressions.

    Attributes:
        inputs: d.
        outputs: P.
        noise: its variance, beside a variance of 1 of what it is added to.
    """

    inputs: int = 8
    outputs: int = 4
    noise: float = 0.5

    @property
    def width(self) -> int:
        """Of a token: x, y, and whether y is known."""
        return self.inputs + self.outputs + 1

    @property
    def ridge(self) -> float:
        """Noise variance over prior variance: with it, ridge regression is the mean of the posterior of W x."""
        return self.noise * self.inputs

    def sample(self, batch_size: int, pairs: int, generator: torch.Generator) -> Regressions:
        """Draw `batch_size` independent regressions of `pairs` pairs and one question more, float32 on the CPU."""
        weights = torch.randn(batch_size, self.inputs, self.outputs, generator=generator) / self.inputs**0.5
        points = torch.randn(batch_size, pairs + 1, self.inputs, generator=generator)
        points = F.normalize(points, dim=-1) * self.inputs**0.5
        means = points @ weights
        return Regressions(points, means + self.noise**0.5 * torch.randn(means.shape, generator=generator), means)

    def ridge_predictions(self, drawn: Regressions) -> Tensor:
        """C (G + ridge I)^-1 x, [B, n + 1, P] float64: the best possible. G and C are sums over the pairs before x."""
        points, answers = drawn.points.double(), drawn.answers.double()
        gram = _before(points.unsqueeze(-1) * points.unsqueeze(-2))  # [B, n + 1, d, d]
        moment = _before(answers.unsqueeze(-1) * points.unsqueeze(-2))  # [B, n + 1, P, d]
        system = gram + self.ridge * torch.eye(self.inputs, dtype=torch.float64)
        return (moment @ torch.linalg.solve(system, points.unsqueeze(-1))).squeeze(-1)

    def hebbian_predictions(self, drawn: Regressions) -> Tensor:
        """C x times a step, [B, n + 1, P] float64: one step of gradient descent on the squares, from W = 0.

        The step is the best one for the number of pairs seen, 1 / (d (1 + noise) + n - 1): with u = x / sqrt(d) it
        minimises E |step C x - W x|^2, for E u^T G u = n / d and E |G u|^2 = (n + n (n - 1) / d) / d on the sphere.
        """
        points, answers = drawn.points.double(), drawn.answers.double()
        moment = _before(answers.unsqueeze(-1) * points.unsqueeze(-2))
        seen = torch.arange(points.shape[1], dtype=torch.float64)
        step = 1 / (self.inputs * (1 + self.noise) + seen - 1)
        return step[:, None] * (moment @ points.unsqueeze(-1)).squeeze(-1)


class RegressionData:
    """Training batches for `train`; a batch is a function of (seed, step).

    Args:
        task: what is drawn.
        pairs: in a sequence.
        batch_size: sequences B.
        seed: any integer; other seeds give independent batches.
    """

    def __init__(self, task: InContextRegression, pairs: int, batch_size: int, seed: int) -> None:
        self.task, self.pairs, self.batch_size, self.seed = task, pairs, batch_size, seed

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """`inputs_embeds` [B, 2 n + 1, d + P + 1] and `labels` [B, n + 1, P], the questions' answers; a part's rows."""
        drawn = self.task.sample(self.batch_size, self.pairs, step_generator(self.seed, step))
        return rows_of_part({"inputs_embeds": drawn.tokens(), "labels": drawn.answers}, part, parts)

    def describe(self) -> dict[str, Any]:
        """The task's name and settings, the pairs, the batch size and the seed."""
        settings = {"task": type(self.task).__name__, **dataclasses.asdict(self.task)}
        return {**settings, "pairs": self.pairs, "batch_size": self.batch_size, "seed": self.seed}


def _before(terms: Tensor) -> Tensor:
    """[B, n + 1, ...] -> the sums of the terms before each."""
    return terms.cumsum(dim=1) - terms
