"""Recall accuracy: segments give what whole sequences give, and batching asks the same questions."""

from __future__ import annotations

import pytest
import torch

from echo_ska.evaluation.recall import recall_accuracy
from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.tasks import MultiQueryRecall, MultiQueryRecallGrid, RecallTask, accuracy

# Few values, so that an untrained model is right often enough for its accuracy to tell two readings apart.
GRID = MultiQueryRecallGrid(pairs=3, gap=0, vocab_size=8, num_keys=4, num_values=2)
ZOOLOGY = MultiQueryRecall(vocab_size=8, length=12, pairs=3)
SEQUENCES = 40


@pytest.fixture(scope="module", params=["ska", "full_attention", "mamba2"])
def model(request: pytest.FixtureRequest) -> EchoForCausalLM:
    config = EchoConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        layer_types=["mamba2", request.param, "mamba2"],
        num_heads=2,
        rank=4,
        state_size=4,
        tie_word_embeddings=False,  # tied, an untrained model would repeat its input
    )
    torch.manual_seed(0)
    model = EchoForCausalLM(config)
    with torch.no_grad():
        # It guesses between the two values of the grid, mostly, by what it has read.
        model.lm_head.weight[4:6] = torch.tensor([[5.0], [-5.0]]) * torch.randn(16)
        model.lm_head.weight[[0, 1, 2, 3, 6, 7]] = 0
    return model


@pytest.mark.parametrize("task", [GRID, ZOOLOGY], ids=["grid", "zoology"])
def test_segments_and_batches_change_nothing(model: EchoForCausalLM, task: RecallTask) -> None:
    length = 40
    generator = torch.Generator().manual_seed(5)
    drawn = [task.with_length(length).sample(1, generator) for _ in range(SEQUENCES)]
    labels = torch.cat([batch.labels for batch in drawn])
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.cat([batch.input_ids for batch in drawn])).logits
    correct, total = accuracy(logits, labels)
    assert 0.1 < correct / total < 0.9
    for segment_length, token_budget in ((4096, 16_384), (40, 40), (39, 800), (7, 7 * 15)):
        found = recall_accuracy(model, task, length, SEQUENCES, 5, segment_length, token_budget=token_budget)
        assert found == pytest.approx(correct / total, abs=1.5 / total)  # one near-tie may fall either way


def test_logits_are_computed_only_where_answers_stand() -> None:
    class Knowing(torch.nn.Module):
        """Answers rightly only if the cache holds the segments before; counts the logits asked for."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.positions: list[int] = []

        def forward(
            self, input_ids: torch.Tensor, past_key_values: object, use_cache: bool, logits_to_keep: torch.Tensor
        ) -> object:
            tokens = input_ids if past_key_values is None else torch.cat([past_key_values, input_ids], dim=1)  # type: ignore[list-item]
            start = tokens.shape[1] - input_ids.shape[1]
            logits = torch.zeros(len(tokens), len(logits_to_keep), 128)
            for row in range(len(tokens)):
                for column, position in enumerate((start + logits_to_keep).tolist()):
                    key = tokens[row, position]
                    stored = (tokens[row, : 2 * 8 : 2] == key).nonzero()
                    logits[row, column, tokens[row, 2 * int(stored[0]) + 1]] = 1.0
            self.positions += (start + logits_to_keep).tolist()
            assert use_cache

            class Output:
                past_key_values = tokens

            Output.logits = logits  # type: ignore[attr-defined]
            return Output

    knowing = Knowing()
    read: list[tuple[int, int]] = []
    found = recall_accuracy(
        knowing, MultiQueryRecallGrid(), 128, 2, 0, 50, progress=lambda *counts: read.append(counts)
    )
    assert found == 1.0
    assert knowing.positions == list(range(112, 128, 2))
    assert read == [(100, 256), (200, 256), (256, 256)]


def test_the_model_keeps_its_training_flag(model: EchoForCausalLM) -> None:
    model.train()
    recall_accuracy(model, GRID, 12, 1, 0)
    assert model.training


@pytest.mark.parametrize("name", ["sequences", "segment_length", "token_budget"])
def test_numbers_below_one_are_refused(model: EchoForCausalLM, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        recall_accuracy(model, GRID, 12, **({"sequences": 1, "seed": 0} | {name: 0}))


def test_a_length_that_does_not_fit_is_refused(model: EchoForCausalLM) -> None:
    with pytest.raises(ValueError, match="need a length of at least 12"):
        recall_accuracy(model, GRID, 8, 1, 0)
