"""The demo's models: equal sizes, one class, a recorded configuration; their measured state."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echo_ska.experiments.demo import recall
from echo_ska.experiments.trials.arms import NO_POSITIONS


def test_the_three_models_have_equal_parameter_counts() -> None:
    counts = {model.name: sum(p.numel() for p in model.build(0).parameters()) for model in recall.RECALL_MODELS}
    assert list(counts) == ["ssm", "ssm+attention", NO_POSITIONS, "ssm+ska"]
    # What to set, should a size change: the count is linear in intermediate_size.
    per_unit = {model.name: 3 * recall.HIDDEN_SIZE * len(model.layer_types) for model in recall.RECALL_MODELS}
    wanted = {
        model.name: model.intermediate_size + round((max(counts.values()) - counts[model.name]) / per_unit[model.name])
        for model in recall.RECALL_MODELS
    }
    assert max(counts.values()) <= 1.01 * min(counts.values()), f"{counts}: for equality set intermediate_size {wanted}"


def test_only_mixers_widths_and_learning_rates_differ() -> None:
    first = recall.RECALL_MODELS[0]
    for model in recall.RECALL_MODELS[1:]:
        alike = replace(
            model,
            name=first.name,
            layer_types=first.layer_types,
            learning_rate=first.learning_rate,
            intermediate_size=first.intermediate_size,
            changes=first.changes,
        )
        assert alike == first


def test_the_ssm_has_the_aids_of_the_others() -> None:
    """Its keys start delayed by a token; the convolution of Mamba-2 as published starts at random."""
    aided = recall.recall_model("ssm")
    for model in (aided, replace(aided, changes=())):
        for layer in model.build(0).model.layers:
            mixer = layer.mixer
            keys = mixer.convolution.weight[mixer.inner_size : mixer.inner_size + mixer.state_size]
            assert bool((keys == keys.new_tensor([0, 1, 0, 0])).all()) == bool(model.changes)
    published = recall.recall_configuration(replace(aided, changes=()), 0)
    assert recall.recall_configuration(aided, 0) == published | {"changes": ["even_mamba_aids"]}


def test_attention_comes_with_positions_and_without() -> None:
    layers = [recall.recall_model(name).build(0).model.layers[1].mixer for name in ("ssm+attention", NO_POSITIONS)]
    assert [layer.rope_theta for layer in layers] == [10_000.0, None]


@pytest.fixture(scope="module")
def trained() -> tuple[recall.EchoForCausalLM, recall.RunRecord, recall.RecallModel]:
    model = replace(recall.recall_model("ssm+ska"), steps=2, batch_size=2)
    return *recall.train_recall_model(model, 3, None), model


def test_a_configuration_known_beforehand_is_the_recorded_one(trained: tuple) -> None:
    _, record, model = trained
    expected = recall.recall_configuration(model, 3)
    assert expected == recall.json.loads(recall.json.dumps(record.configuration))
    assert expected != recall.recall_configuration(model, 4)


def test_measurements_are_reported_and_repeatable(trained: tuple) -> None:
    network, _, _ = trained
    seen = []

    class Seen:
        def update(self, step: int, steps: int, figures: dict[str, float]) -> None:
            seen.append((step, steps, set(figures)))

    accuracy = recall.measure_recall(network, {64: 4, 128: 2}, Seen())
    assert list(accuracy) == [64, 128]
    assert accuracy == recall.measure_recall(network, {64: 4, 128: 2}, None)
    assert seen[-1] == (512, 512, {"accuracy", "tokens_per_second"})


@pytest.mark.parametrize("name", [model.name for model in recall.RECALL_MODELS])
def test_state_bytes_are_those_of_the_live_cache(name: str) -> None:
    network = recall.recall_model(name).build(0).eval()
    measured = recall.measure_state_bytes(network, [64, 256])
    assert (measured[64] == measured[256]) == ("attention" not in name)


def test_a_wrong_state_bytes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    network = recall.recall_model("ssm").build(0).eval()
    monkeypatch.setattr(type(network), "state_bytes", lambda self, length: 1)
    with pytest.raises(RuntimeError, match="the live cache holds"):
        recall.measure_state_bytes(network, [64])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="choose from ssm, "):
        recall.recall_model("rnn")
