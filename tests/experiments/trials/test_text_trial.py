"""Trials on text: what is recorded, resumed and found again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from in_process import Silent
from text_folder import write_texts

from echo_ska.experiments.trials import text_trial
from echo_ska.experiments.trials import trial as trials
from echo_ska.experiments.trials.arms import small
from echo_ska.experiments.trials.text_trial import Scoring, TextTrial, learning_curve
from echo_ska.experiments.trials.texts import TextFolder
from echo_ska.experiments.trials.trial import run_trial
from echo_ska.training import RunRecord

TINY = {"hidden_size": 16, "rank": 4, "state_size": 4}
SCORED = (Scoring("test", (8, 32), 4), Scoring("wikitext2", (8, 32), 2))


@pytest.fixture
def trial(tmp_path, monkeypatch) -> TextTrial:
    monkeypatch.chdir(tmp_path)
    texts = TextFolder.read(write_texts(tmp_path / "texts"), "x")
    return TextTrial("tiny", small("ska", "echo", **TINY), texts, 30, 4, 16, 1e-2, SCORED)


def test_it_records_what_it_was_and_what_it_found(trial, tmp_path):
    record = RunRecord(**run_trial(lambda stage: Silent(), trial=trial))
    assert record.configuration == trial.configuration() == json.loads(json.dumps(trial.configuration()))
    assert trial.recorded_run().matches(record)
    assert str(tmp_path) not in json.dumps(record.configuration)  # checksums say which texts, not paths
    scores = record.figures["bits_per_byte"]
    assert {part: list(by_context) for part, by_context in scores.items()} == {
        "test": ["8", "32"],
        "wikitext2": ["8", "32"],
    }
    assert all(2 < bits < 8 for by_context in scores.values() for bits in by_context.values())
    assert record.figures["curve"] == [[100, pytest.approx(record.figures["curve"][0][1])]]
    assert record.figures["state_bytes"] > 0
    # Known from the record alone, it is the same run.
    known = replace(trial, texts=TextFolder.of_records([record]))
    assert known.recorded_run().matches(record)
    assert not known.to_tune(5, [Scoring("valid", (8,), 1)]).recorded_run().matches(record)


def test_a_record_depends_on_what_it_read_alone(trial, tmp_path):
    tried = trial.to_tune(5, [Scoring("valid", (8,), 1)])

    def now(one):
        return replace(one, texts=TextFolder.read(tmp_path / "texts", "x")).configuration()

    (tmp_path / "texts" / "more").mkdir()
    (tmp_path / "texts" / "more" / "m.txt").write_text("one more to score")
    assert (now(tried), now(trial)) == (tried.configuration(), trial.configuration())
    (tmp_path / "texts" / "test" / "z.txt").write_text("one more author")
    assert now(tried) == tried.configuration()
    assert now(trial) != trial.configuration()
    (tmp_path / "texts" / "valid" / "w.txt").write_text("one more to choose by")
    assert now(tried) != tried.configuration()
    (tmp_path / "texts" / "train" / "c.txt").write_text("one more to learn")
    assert now(trial)["data"] != trial.configuration()["data"]


def test_a_stopped_trial_goes_on_where_it_was(trial, monkeypatch):
    whole = run_trial(lambda stage: Silent(), trial=trial)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(text_trial, "bits_by_context", stop)
        with pytest.raises(KeyboardInterrupt):
            run_trial(lambda stage: Silent(), trial=trial)
    steps = []

    class Watching(Silent):
        def update(self, step, total, figures):
            steps.append((step, total))

    stages = {}
    resumed = run_trial(lambda stage: stages.setdefault(stage, Watching()), trial=trial)
    assert resumed["figures"]["bits_per_byte"] == whole["figures"]["bits_per_byte"]
    assert resumed["figures"]["curve"] == whole["figures"]["curve"]
    assert min(step for step, total in steps if total == trial.steps) == trial.steps  # nothing was trained again
    assert list(trials.UNFINISHED.iterdir()) == [trial.folder()]


def test_a_divergence_knows_nothing(trial):
    figures = run_trial(lambda stage: Silent(), trial=replace(trial, learning_rate=1e30))["figures"]
    assert figures["diverged"]
    assert {bits for part in figures["bits_per_byte"].values() for bits in part.values()} == {8.0}


def test_the_rate_of_fewest_bits_is_best(trial):
    tried = trial.with_(seed=3, measure=len).to_tune(5, SCORED[:1])
    assert (tried.seed, tried.steps, tried.scored, tried.measure) == (0, 5, SCORED[:1], None)
    low, high = (
        RunRecord(**run_trial(lambda stage: Silent(), trial=tried.with_(learning_rate=r))) for r in (1e-9, 1e-2)
    )
    assert TextTrial.merit(high) > TextTrial.merit(low)


def test_a_learning_curve_averages_the_log(tmp_path):
    lines = [{"step": step, "loss": float(step)} for step in (50, 100, 150, 170)] + [{"step": 170, "evaluation": {}}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert learning_curve(tmp_path / "log.jsonl") == [[100, 75.0], [200, 160.0]]
