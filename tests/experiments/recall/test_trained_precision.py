"""trained-precision: what is handed on is rounded, nothing else, and float64 rounds nothing."""

from __future__ import annotations

import pytest
import torch

from echo_ska.experiments.algebra.state_precision import PRECISIONS, Precision
from echo_ska.experiments.recall import trained_precision as experiment
from echo_ska.experiments.trials.arms import small
from echo_ska.experiments.trials.trial import Question
from echo_ska.nn.peers.base import LinearState
from echo_ska.nn.ska import SpectralKoopmanState

TINY = {"hidden_size": 16, "rank": 4, "state_size": 4}
ASKED = (Question("96", experiment.TASK, 96, 8),)


def network(mixer: str):
    return small(mixer, **TINY).build(experiment.TASK.vocab_size, 0).eval()


@pytest.mark.parametrize("mixer", ["ska", "delta_net"])
@torch.no_grad()
def test_the_middle_layers_sums_alone_are_rounded(mixer):
    built = network(mixer)
    tokens = torch.randint(experiment.TASK.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    plain = built(input_ids=tokens, use_cache=True).past_key_values
    halves = Precision(1, lambda numbers: (2 * numbers).round() / 2)
    rounded = experiment.Rounding(built, halves)(input_ids=tokens, use_cache=True).past_key_values
    for place, (before, after) in enumerate(zip(plain.layers, rounded.layers, strict=True)):
        for name, tensor in before.state.compact().tensors().items():
            found = after.state.tensors()[name]
            is_sum = place == 1 and name.rsplit(".", 1)[-1] in ("gram", "lag_moment", "value_moment", "memory")
            assert found.dtype == tensor.dtype
            if is_sum:
                assert torch.equal(found, (2 * tensor).round() / 2)
                assert not torch.equal(found, tensor)
            else:
                assert torch.equal(found, tensor)
    assert isinstance(rounded.layers[1].state, SpectralKoopmanState if mixer == "ska" else LinearState)


def test_in_float64_a_model_answers_as_it_does():
    built = network("ska")
    trial = experiment.trials()[1].with_(questions=ASKED)
    found = experiment.rounded_recall(built, trial)["rounded"]
    assert set(found) == set(PRECISIONS)
    (asked,) = ASKED
    as_it_is = experiment.recall_accuracy(built, asked.task, asked.length, asked.sequences, asked.seed, 32)
    assert found["float64"] == {"96": as_it_is}
