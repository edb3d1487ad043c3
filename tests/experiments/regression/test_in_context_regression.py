"""In-context regression: its data, its two algorithms, the layer set by hand that IS one of them, and the runs."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import pytest
import torch
from in_process import Silent, run_here
from made_up import made_up
from matplotlib.figure import Figure
from rich.console import Console
from sklearn.linear_model import Ridge

from echo_ska.experiments.regression import figure as picture
from echo_ska.experiments.regression import in_context_regression as experiment
from echo_ska.experiments.regression import results as recorded_results
from echo_ska.experiments.regression.model import ARMS, BY_HAND, model_by_hand
from echo_ska.experiments.regression.task import InContextRegression, RegressionData
from echo_ska.experiments.trials import recorded as recorded_runs
from echo_ska.nn.aids import NORM_EPS
from echo_ska.nn.peers import LinearAttention

TASK = InContextRegression()


def draw(batch, pairs, seed=0, task=TASK):
    return task.sample(batch, pairs, torch.Generator().manual_seed(seed))


def test_draws_have_the_stated_statistics():
    drawn = draw(4000, 8)
    assert torch.allclose(drawn.points.norm(dim=-1), torch.tensor(math.sqrt(TASK.inputs)))
    coordinates = drawn.points.flatten(0, 1)
    assert torch.allclose(coordinates.T @ coordinates / len(coordinates), torch.eye(TASK.inputs), atol=0.03)
    assert drawn.means.var().item() == pytest.approx(1, abs=0.02)
    noise = drawn.answers - drawn.means
    assert noise.var().item() == pytest.approx(TASK.noise, abs=0.01)
    assert (noise * drawn.means).mean().abs() < 0.01
    # Every sequence has a W of its own, and one W fits all its pairs.
    fitted = torch.linalg.lstsq(drawn.points, drawn.means).solution
    assert torch.allclose(drawn.points @ fitted, drawn.means, atol=1e-3)
    assert (fitted[0] - fitted[1]).abs().max() > 0.1


def test_tokens_show_an_answer_only_after_its_question():
    drawn = draw(2, 3)
    tokens = drawn.tokens()
    assert tokens.shape == (2, 7, TASK.width)
    x, y, known = tokens.split([TASK.inputs, TASK.outputs, 1], dim=-1)
    assert torch.equal(x[:, ::2], drawn.points)
    assert torch.equal(x[:, 1::2], drawn.points[:, :-1])
    assert torch.equal(y[:, 1::2], drawn.answers[:, :-1])
    assert not y[:, ::2].any()
    assert known[0, :, 0].tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_batches_are_a_function_of_seed_and_step():
    data = RegressionData(TASK, 3, 2, seed=1)
    first, again, later = data.batch(0), data.batch(0), data.batch(1)
    other = RegressionData(TASK, 3, 2, seed=2).batch(0)
    assert torch.equal(first["inputs_embeds"], again["inputs_embeds"])
    assert not torch.equal(first["labels"], later["labels"])
    assert not torch.equal(first["labels"], other["labels"])
    assert first["labels"].shape == (2, 4, TASK.outputs)


@pytest.mark.parametrize("seen", [0, 1, 5, 20])
def test_ridge_predictions_are_those_of_scikit_learn(seen):
    drawn = draw(2, 20)
    predicted = TASK.ridge_predictions(drawn)[1, seen]
    if seen == 0:
        assert not predicted.any()
        return
    fitted = Ridge(alpha=TASK.ridge, fit_intercept=False)
    fitted.fit(drawn.points[1, :seen].double().numpy(), drawn.answers[1, :seen].double().numpy())
    expected = torch.from_numpy(fitted.predict(drawn.points[1, seen : seen + 1].double().numpy()))[0]
    assert torch.allclose(predicted, expected, atol=1e-10)


def test_no_other_ridge_and_no_other_step_is_better():
    drawn = draw(4000, 24)
    ridge, hebbian = TASK.ridge_predictions(drawn), TASK.hebbian_predictions(drawn)
    truth = drawn.means.double()

    def error(predictions):
        return (predictions - truth).square().mean(dim=(0, 2))[[4, 12, 24]]

    for factor in (0.6, 1.6):
        task = InContextRegression(noise=TASK.noise * factor)
        assert (error(task.ridge_predictions(drawn)) > error(ridge)).all()
    for factor in (0.9, 1.1):
        assert (error(factor * hebbian) > error(hebbian)).all()
    # The best ridge prediction is the posterior mean: what another one adds to the error is its distance from it.
    distance = (hebbian - ridge).square().mean(dim=(0, 2))[[4, 12, 24]]
    assert torch.allclose(error(hebbian), error(ridge) + distance, atol=0.01)


def test_one_step_of_gradient_descent_is_the_hebbian_prediction():
    drawn = draw(1, 6)
    weights = torch.zeros(TASK.outputs, TASK.inputs, requires_grad=True)
    points, answers = drawn.points[0, :6], drawn.answers[0, :6]
    (0.5 * (answers - points @ weights.T).square().sum()).backward()
    step = 1 / (TASK.inputs * (1 + TASK.noise) + 6 - 1)
    expected = -step * weights.grad @ drawn.points[0, 6]
    assert torch.allclose(TASK.hebbian_predictions(drawn)[0, 6].float(), expected, atol=1e-5)


@torch.no_grad()
def test_ska_set_by_hand_is_ridge_regression_without_training():
    drawn = draw(32, 96)
    predicted = model_by_hand(TASK)(drawn.tokens()).predictions
    assert (predicted - TASK.ridge_predictions(drawn)).abs().max() < 1e-5
    other = InContextRegression(inputs=5, outputs=2, noise=0.01)
    drawn = draw(8, 10, task=other)
    assert (model_by_hand(other)(drawn.tokens()).predictions - other.ridge_predictions(drawn)).abs().max() < 1e-4


@torch.no_grad()
def test_linear_attention_set_by_hand_is_the_hebbian_prediction_but_for_its_step():
    drawn = draw(8, 24)
    predicted = model_by_hand(TASK, LinearAttention)(drawn.tokens()).predictions
    step = 1 / (TASK.inputs * (1 + TASK.noise) + torch.arange(25) - 1)
    scaled = predicted * (TASK.inputs + NORM_EPS**2) * step[:, None]
    assert torch.allclose(scaled.double(), TASK.hebbian_predictions(drawn), atol=1e-5)


@pytest.mark.parametrize("name", ARMS)
@torch.no_grad()
def test_no_arm_sees_an_answer_before_it_is_asked(name):
    model = ARMS[name].build(TASK, 2, 0)
    tokens = draw(1, 4).tokens()
    changed = tokens.clone()
    changed[:, 5:] += 1  # from pair 2 on
    before, after = model(tokens).predictions, model(changed).predictions
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 1e-4


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Two arms, three steps, four sequences, in a folder of its own and in this process; the names of jobs run."""
    names: list[str] = []

    def run_jobs(jobs, console, *, on_result):
        names.extend(job.name for job in jobs)
        for name, result in run_here(jobs).items():
            on_result(name, json.loads(json.dumps(result)))

    arms = ("softmax, no positions", "SKA, power 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recorded_runs, "run_jobs", run_jobs)
    monkeypatch.setattr(experiment, "ARMS", {name: ARMS[name] for name in arms})
    monkeypatch.setattr(experiment, "QUICK_STEPS", 10)
    return names


def test_it_resumes_and_shows_what_is_recorded(small, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    records = experiment.run(console, quick=True)
    assert len(small) == 3  # two trainings and the model set by hand
    assert experiment.run(console, quick=True) == records
    assert len(small) == 3
    experiment.run(console, seeds=2, quick=True)
    assert small[3:] == [f"{name}, 1 layer, rate 0.02, seed 1" for name in ("softmax, no positions", "SKA, power 0")]
    stem = tmp_path / "results" / "in-context-regression-quick"
    assert stem.with_suffix(".png").stat().st_size > 20_000
    results = experiment.recorded_results(stem.with_suffix(".jsonl"), 2, quick=True)
    assert list(results) == [(BY_HAND, 1), ("softmax, no positions", 1), ("SKA, power 0", 1)]
    assert all(list(record.figures["measured"]) == ["0", "10"] for record in results["SKA, power 0", 1])
    assert recorded_results.figure_of(results[BY_HAND, 1][0], "ridge", "96") < 1e-10
    along, by_pairs = recorded_results.along_rows(results), recorded_results.pairs_rows(results)
    assert {len(row) for row in along} == {5}
    assert [row[0] for row in by_pairs[1:4]] == ["best ridge regression", "best Hebbian read", BY_HAND]
    assert "diverged" not in console.file.getvalue()
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        experiment.run(console, seeds=0, quick=True)


def test_a_seed_that_diverged_is_not_left_out_of_the_picture():
    sound = {"0": 1.0, "10": 0.1, "30": 0.01}

    def record(distances, **figures):
        measured = {step: {"ridge": {"1-24": value, "4": value}} for step, value in distances.items()}
        return made_up("in-context-regression", {}, {"measured": measured} | figures)

    diverged = record({"0": 4.0}, diverged=True)
    others = [record(sound), record(sound)]
    assert picture._over_seeds([diverged, *others], "1-24", "30") == (math.inf, 0.01, math.inf)
    assert picture._over_seeds([diverged, *others], "4", None) == (math.inf, 0.01, math.inf)
    assert picture._over_seeds([diverged], "4", None) == (math.inf,) * 3
    assert picture._over_seeds(others, "4", None) == pytest.approx((0.01, 0.01, 0.01))

    axes = Figure().subplots()
    ends = picture._along(axes, {"SKA, power 0": [diverged, *others]})
    (line,) = axes.lines
    assert list(line.get_xdata()) == [4, 10, 30]
    assert list(line.get_ydata()) == pytest.approx([4 ** (1 / 3), picture.HIGHEST, picture.HIGHEST])
    assert ends == {"SKA, power 0": (30, picture.HIGHEST)}


def test_a_divergence_is_recorded_and_never_the_best_rate(small):
    run = experiment.RegressionRun("SKA, power 0", 1, 1e30, steps=10, sequences=2)
    record = experiment.RunRecord(**experiment.run_regression(lambda stage: Silent(), run=run))
    assert run.recorded_run().matches(record)
    assert not dataclasses.replace(run, layers=2).recorded_run().matches(record)
    assert record.figures["diverged"]
    assert record.figures["training_loss"] is None
    assert recorded_results.figure_of(record, "ridge", "24") == math.inf
    assert math.isfinite(recorded_results.figure_of(record, "ridge", "24", "0"))
