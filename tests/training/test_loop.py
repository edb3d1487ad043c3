import dataclasses
import json
import math
from typing import NamedTuple

import pytest
import torch
from tiny_model import CountingData, build, config, run

from echo_ska.training import train
from echo_ska.training.checkpoint import list_checkpoints


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def read_log(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_says_so():
    model, record = run(None, steps=150)
    assert record.figures["loss"] < 0.5
    assert record.figures["accuracy"] > 0.9
    assert record.figures["tokens_per_second"] > 0
    assert record.figures["parameters"] == sum(p.numel() for p in model.parameters())
    assert record.configuration["training"] == dataclasses.asdict(config(150))
    assert record.configuration["data"]["task"] == "counting"
    assert record.configuration["model"] == {"class": "TinyModel"}


def test_a_regression_has_no_accuracy():
    class Output(NamedTuple):
        loss: torch.Tensor

    class Line(torch.nn.Linear):
        def forward(self, inputs_embeds, labels):
            return Output((super().forward(inputs_embeds) - labels).square().mean())

    class LineData:
        def batch(self, step):
            points = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(step))
            return {"inputs_embeds": points, "labels": points.sum(-1, keepdim=True)}

        def describe(self):
            return {"task": "line"}

    torch.manual_seed(0)
    record = train(Line(3, 1), LineData(), config(200, learning_rate=0.1))
    assert record.figures["loss"] < 1e-2
    assert "accuracy" not in record.figures
    assert record.figures["tokens_per_second"] > 0


def test_the_seed_decides_everything():
    assert torch.equal(weights(run(None)[0]), weights(run(None)[0]))
    assert not torch.equal(weights(run(None)[0]), weights(run(None, seed=1)[0]))


def test_evaluations_are_logged_and_change_nothing(tmp_path):
    def evaluate(model, step):
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(5)  # randomness used here must not reach the training
        return {"distance": float(step)}

    model = build()
    record = train(model, CountingData(), config(evaluate_every=15), evaluate=evaluate, directory=tmp_path)
    assert torch.equal(weights(model), weights(run(None)[0]))
    assert [entry for entry in read_log(tmp_path) if "evaluation" in entry] == [
        {"step": step, "evaluation": {"distance": float(step)}} for step in (15, 30, 40)
    ]
    assert record.figures["distance"] == 40.0


def test_what_was_learnt_is_kept_before_it_is_evaluated(tmp_path):
    told = []

    class Kept:
        def log(self, entry):
            told.append(entry)

    def failing(model, step):
        raise KeyboardInterrupt

    def evaluate(model, step):
        return {"distance": 1.0}

    def go_on(evaluate, **more):
        model = build()
        settings = config(7, checkpoint_every=0)
        record = train(model, CountingData(), settings, evaluate=evaluate, directory=tmp_path, **more)
        return model, record

    with pytest.raises(KeyboardInterrupt):
        go_on(failing)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000007"]
    model, record = go_on(evaluate, observers=[Kept()])
    assert told == read_log(tmp_path)[-1:] == [{"step": 7, "evaluation": {"distance": 1.0}}]
    assert record.figures["distance"] == 1.0
    whole = tmp_path / "whole"
    undisturbed = build()
    train(undisturbed, CountingData(), config(7, checkpoint_every=0), evaluate=evaluate, directory=whole)
    assert torch.equal(weights(model), weights(undisturbed))
    assert [entry.keys() for entry in read_log(tmp_path)] == [entry.keys() for entry in read_log(whole)]


def test_a_finished_run_is_evaluated_by_what_is_asked_now(tmp_path):
    told = []

    class Kept:
        def log(self, entry):
            told.append(entry)

    def ask(distance):
        def evaluate(model, step):
            return {"distance": distance}

        settings = config(6, evaluate_every=4)
        return train(
            build(), CountingData(), settings, evaluate=evaluate, directory=tmp_path, observers=[Kept()]
        ).figures["distance"]

    assert ask(1.0) == 1.0
    log = (tmp_path / "log.jsonl").read_bytes()
    told.clear()
    assert ask(1.0) == 1.0
    assert told == []  # the curves have it
    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert ask(2.0) == 2.0
    assert told == [{"step": 6, "evaluation": {"distance": 2.0}}]
    assert [entry["evaluation"]["distance"] for entry in read_log(tmp_path) if "evaluation" in entry] == [1.0, 2.0]
    assert [entry["step"] for entry in read_log(tmp_path)] == [3, 4, 6, 6]


def test_the_reporter_is_told(tmp_path):
    told = []

    class Listener:
        def update(self, step, steps, figures):
            told.append((step, steps, set(figures)))

    train(build(), CountingData(), config(5), reporter=Listener())
    assert told[:3] == [(step, 5, set()) for step in (0, 1, 2)]
    assert told[3:] == [(step, 5, {"loss", "accuracy", "tokens_per_second"}) for step in (3, 4, 5)]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_it(tmp_path, where):
    model = build()

    def poison(module, inputs, output):
        if sum(1 for _ in (tmp_path / "checkpoints").glob("step-*")) == 2:
            if where == "loss":
                output.loss = output.loss * math.nan
            else:
                output.loss.register_hook(lambda gradient: gradient * math.inf)

    model.register_forward_hook(poison)
    with pytest.raises(FloatingPointError, match=r"at step 10, .* last good checkpoint is .*step-000010\.$"):
        train(model, CountingData(), config(), directory=tmp_path)
    assert torch.isfinite(weights(model)).all()


def test_it_stops_without_a_checkpoint_too():
    model = build()
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"loss became nan at step 0.*no checkpoint has been written"):
        train(model, CountingData(), config())


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="device is cuda, but torch finds no GPU"):
        train(build(), CountingData(), config(device="cuda"))


def test_bfloat16_is_used_when_asked_for():
    seen = []
    model = build()
    model.recurrence.register_forward_hook(lambda module, inputs, output: seen.append(torch.is_autocast_enabled("cpu")))
    train(model, CountingData(), config(2, precision="bf16"))
    train(model, CountingData(), config(1))  # the same process may then train in float32
    assert seen == [True, True, False]
    assert model.embedding.weight.dtype == torch.float32
