"""Two processes that have a part of every sequence each equal one: losses, counts, weights, resumption."""

import re

import pytest
import together

from echo_ska.training import ScaleConfig

CURVES = {
    "echo": "kept",
    "resumed": "kept",
    "from one": "kept",
    "to ddp": "kept",
    "accumulate": "kept",
    "packed": "packed",
    "skip logits": "kept",
    "checkpoint activations": "kept",
}
"""What two processes did, and what of one process it equals."""


@pytest.mark.parametrize("what", CURVES)
def test_parts_of_sequences_equal_the_whole(two_processes, what):
    curve, other = (results["context"][what] for results in two_processes.results)
    reference = two_processes.one[CURVES[what]]
    steps = 4 if what in ("resumed", "from one", "to ddp") else together.STEPS
    assert len(curve["losses"]) == steps
    assert curve["losses"] == pytest.approx(reference["losses"][-steps:], abs=2e-6)
    assert curve["weights"] == pytest.approx(reference["weights"], abs=2e-6)
    assert curve["norms"] == pytest.approx(reference["norms"][-steps:], rel=1e-5)
    assert curve["accuracies"] == reference["accuracies"][-steps:]
    assert curve["weights"] == other["weights"]


def test_a_resumption_is_exact(two_processes):
    results = two_processes.results[0]["context"]
    assert results["resumed"]["weights"] == results["echo"]["weights"]
    assert results["resumed"]["losses"] == results["echo"]["losses"][4:]
    assert results["checkpoint activations"]["weights"] == results["echo"]["weights"]


def test_evaluations_see_whole_sequences(two_processes):
    evaluations = two_processes.results[0]["context"]["echo"]["evaluations"]
    assert evaluations[0] == pytest.approx(two_processes.one["echo"]["evaluations"][0], abs=2e-6)


SENTENCES = {
    "another model": r"ValueError: strategy context splits the sequences of an EchoForCausalLM, not of TinyModel: .*",
    "short": r"DisagreementError: every part must have at least 3 tokens, got \[2, 2\]",
    "spoiled": r"FloatingPointError: The loss became nan at step 6, so .*",
    "spoiled, recomputed": r"FloatingPointError: The loss became nan at step 6, so .*",
    "spike": r"FloatingPointError: The loss rose to .* so that step was not taken; .*",
}


@pytest.mark.parametrize("what", SENTENCES)
def test_what_cannot_be_ends_in_one_sentence_of_both(two_processes, what):
    told = [results["context"][what] for results in two_processes.results]
    assert told[0] == told[1]
    assert re.fullmatch(SENTENCES[what], told[0]), told[0]


def test_a_model_is_given_back_whole_after_an_error(two_processes):
    assert [results["context"]["given back"] for results in two_processes.results] == [True, True]


def test_layers_that_exchange_are_not_compiled():
    with pytest.raises(ValueError, match="strategy context cannot compile"):
        ScaleConfig(strategy="context", compile=True)
