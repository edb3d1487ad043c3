"""One sequence over 2, 3 and 4 processes equals one process: outputs, losses, gradients, states; and what it sends."""

from __future__ import annotations

import itertools
import math
from typing import Any

import parallel_cases
import pytest
import torch

from echo_ska.parallel import ContextParallel, run_processes

RUNS = [(world, rank) for world in parallel_cases.WORLDS for rank in range(world)]


@pytest.fixture(scope="module")
def found() -> list[dict[str, dict[int, Any]]]:
    """By rank, case and world: what the processes found. They are started once, the smaller groups are of the first."""
    return run_processes(parallel_cases.run_all, max(parallel_cases.WORLDS))


@pytest.mark.parametrize(
    "case",
    [
        "equal_parts",
        "unequal_parts",
        "chunk_causal",
        "plain_power",
        "packed_sequences",
        "packed_chunk_causal",
        "packed_chunk_causal_as_split",
        "packed_between_sequences",
        "dropout",
        "recomputed",
    ],
)
def test_parts_equal_the_whole_in_float64(found, case) -> None:
    for world, rank in RUNS:
        differences = found[rank][case][world]
        assert differences["logits"] < 1e-13, (world, rank)
        assert differences["loss"] < 1e-13, (world, rank)
        assert differences["gradients"] < 2e-11, (world, rank)


def test_dropout_changes_what_parts_are_held_to(found) -> None:
    assert all(found[rank]["dropout"][world]["dropped"] > 1e-3 for world, rank in RUNS)


def test_in_float32_parts_round_no_worse_than_the_whole(found) -> None:
    for world, rank in RUNS:
        differences = found[rank]["single_precision"][world]
        assert differences["logits"] < 2e-6
        assert differences["rounding of parts"] < 3 * differences["rounding of one"]


def test_loss_curves_and_weights_of_a_training_are_those_of_one_process(found) -> None:
    for rank in range(2):
        run = found[rank]["trained"][2]
        assert len(run["parts"]) == 10
        assert run["parts"] == pytest.approx(run["one"], abs=2e-6)
        assert run["weights"] < 2e-4
    assert found[0]["trained"][2]["parts"] == found[1]["trained"][2]["parts"]


@pytest.mark.parametrize("case", ["read", "read_on"])
def test_reading_by_all_ends_in_the_states_of_one_process(found, case) -> None:
    for world, rank in RUNS:
        for name, difference in found[rank][case][world].items():
            assert difference < 1e-12, (world, rank, name)


def test_bytes_and_messages_of_a_layer_do_not_depend_on_the_length(found) -> None:
    small = parallel_cases.model(torch.float32)
    for world, rank in RUNS:
        run = found[rank]["volume"][world]
        assert run["lengths"][256] == run["lengths"][1024]
        forward, backward = (run["lengths"][256][phase] for phase in ("forward", "backward"))
        distances = [1, *(2**k for k in range(math.ceil(math.log2(world))))]  # the neighbour's inputs, then the scan
        assert set(forward) == (set() if rank == world - 1 else {f"model.layers.{n}.mixer" for n in range(4)})
        for number, mixer in enumerate(small.model.mixers):
            name = f"model.layers.{number}.mixer"
            assert forward.get(name, (0, 0))[0] == sum(rank + distance < world for distance in distances)
            assert backward.get(name, (0, 0))[0] == sum(rank - distance >= 0 for distance in distances)
            # The state is what a summary has, and for each head of Mamba-2 a decay; SKA's position is its count.
            extra = -8 if number in (1, 2) else 4 * small.model.mixers[0].heads
            once = mixer.state_bytes(256) + extra
            rounds = forward.get(name, (0, 0))[0] - 1
            if rounds > 0:
                tail = mixer.init_state(1).convolution
                sent = tail.numel() * 4
                assert forward[name][1] == sent + rounds * (once - sent)


def test_a_backward_pass_sends_as_much_as_a_forward_pass(found) -> None:
    for world in parallel_cases.WORLDS:
        runs = [found[rank]["volume"][world]["lengths"][1024] for rank in range(world)]
        totals = [sum(sent for run in runs for _, sent in run[phase].values()) for phase in ("forward", "backward")]
        assert totals[0] == totals[1] > 0


def test_reading_broadcasts_the_states_once_a_round(found) -> None:
    for world, rank in RUNS:
        run = found[rank]["volume"][world]
        assert run["read"] == run["lengths"][256]["forward"]
        assert run["broadcast"] == (run["states"] if rank == world - 1 else 0)


def test_what_cannot_be_split_is_refused_in_every_process(found) -> None:
    sentences = {
        "attention": "cannot be split over processes",
        "weights": "different weights",
        "twice": "close() that first",
        "rows": "part of the same sequences",
        "short": "at least 3 tokens",
        "some packed": "cu_seqlens must be given in every process",
        "some labelled": "shift_labels must be given in every process",
        "trailing": "the last sequence of a part must have a token",
        "padding": "pack its sequences",
        "interval": "multiples of 8",
        "recorded": "records what it reads",
        "no token": "at least one token",
    }
    for (world, rank), (name, sentence) in itertools.product(RUNS, sentences.items()):
        assert sentence in found[rank]["refused"][world][name]


def test_without_a_process_group_a_sentence_says_what_to_call() -> None:
    with pytest.raises(ValueError, match="init_process_group"):
        ContextParallel(parallel_cases.model())
