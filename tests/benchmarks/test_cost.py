"""Counted operations are those that FlopCounterMode sees, where it can see, and by hand where it cannot."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from echo_ska.benchmarks import operations
from echo_ska.benchmarks.cost import PEAKS, device_peak, peak_of, training_cost
from echo_ska.models import EchoConfig, EchoForCausalLM, preset

SIZES = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 3, "num_heads": 2, "rank": 8, "state_size": 16}
MATRICES = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
LENGTH = 128


def seen(config: EchoConfig) -> tuple[int, int]:
    """Products of matrices that torch counts in a forward and a backward pass of one sequence."""
    model = EchoForCausalLM(config)
    tokens = torch.zeros(1, LENGTH, dtype=torch.int64)
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    # Of its convolutions it counts the backward pass as if their channels were not apart.
    return tuple(
        sum(counter.get_flop_counts()["Global"].get(op, 0) for op in MATRICES) for counter in (forward, backward)
    )


@pytest.mark.parametrize(
    "fields",
    [{}, {"feed_forward": "koopman"}, {"feed_forward": "koopman-gated", "tie_word_embeddings": True}],
    ids=["swiglu", "koopman", "gated, tied"],
)
def test_a_mamba2_model_is_counted_as_torch_counts_it(fields):
    config = EchoConfig(**SIZES, ska_layers=[], **fields)
    cost = training_cost(config, LENGTH, tokens=1)
    assert seen(config) == (LENGTH * sum(cost.forward.values()), LENGTH * sum(cost.backward.values()))


@pytest.mark.parametrize("mixer", ["ska", "full_attention"])
def test_of_the_other_mixers_torch_counts_the_linear_layers(mixer):
    """What they do between them it does not see on a CPU: kernels in C here, a fused attention there."""
    config = EchoConfig(**SIZES, layer_types=["mamba2", mixer, "mamba2"])
    cost = training_cost(config, LENGTH, tokens=1)
    visible = (
        LENGTH * sum(count for name, count in part.items() if name != mixer) for part in (cost.forward, cost.backward)
    )
    assert seen(config) == tuple(visible)


def test_mixers_are_counted_by_their_own_formulas():
    ska = training_cost(EchoConfig(**SIZES, ska_layers=[1]), LENGTH, tokens=1)
    exact = operations.exact_read(LENGTH, heads=2, rank=8, head_dim=32, power=2)
    assert (ska.forward["ska"], ska.backward["ska"]) == (exact.forward / LENGTH, exact.backward / LENGTH)
    frozen = training_cost(EchoConfig(**SIZES, ska_layers=[1], refresh_interval=16), LENGTH, tokens=1)
    chunks = operations.chunk_causal_read(LENGTH, heads=2, rank=8, head_dim=32, power=2, refresh_interval=16)
    assert frozen.forward["ska"] == chunks.forward / LENGTH
    paper = training_cost(EchoConfig(**SIZES, layer_types=["mamba2", "ska-paper", "mamba2"]), LENGTH, tokens=1)
    chunks = operations.chunk_causal_read(LENGTH, heads=2, rank=8, head_dim=32, power=2, refresh_interval=64)
    assert paper.backward["ska-paper"] == chunks.backward / LENGTH


def test_only_attention_grows_with_the_length():
    def at(length, **fields):
        return training_cost(EchoConfig(**SIZES, **fields), length, tokens=1)

    for fields in ({"ska_layers": []}, {"ska_layers": [1]}):
        assert at(8192, **fields).flops_per_token == pytest.approx(at(1024, **fields).flops_per_token)
    short, long = (at(length, attention_layers=[1]) for length in (1023, 8191))
    assert long.forward["full_attention"] == 8 * short.forward["full_attention"]
    assert long.forward["linear"] == short.forward["linear"]


def test_the_large_presets_cost_about_six_operations_a_weight():
    for name in ("echo-50m", "echo-180m"):
        cost = training_cost(preset(name), 2048, tokens=1000)
        # An embedding that is also the head is used in products once; scans and reads come on top.
        assert 6 * cost.parameters < cost.flops_per_token < 1.15 * 6 * cost.parameters
        assert cost.flops == 1000 * cost.flops_per_token
        assert cost.state_bytes == 16 * cost.parameters


def test_hours_are_operations_over_what_the_devices_do():
    cost = training_cost(EchoConfig(**SIZES), LENGTH, tokens=10**9)
    one = cost.hours(PEAKS["A100"], 0.5)
    assert one == pytest.approx(cost.flops / 156e12 / 3600)
    assert cost.hours(PEAKS["A100"], 0.25, devices=4) == pytest.approx(one / 2)
    for arguments in ((0, 0.5), (1e12, 0), (1e12, 1.5), (1e12, 0.5, 0)):
        with pytest.raises(ValueError, match="Need peak > 0"):
            cost.hours(*arguments)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_peak_is_known_or_not_given(name, peak):
    assert peak_of(name) == peak


def test_a_cpu_has_no_peak_here():
    assert device_peak(torch.device("cpu"), bfloat16=True) is None


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0 and 5"):
        training_cost(EchoConfig(**SIZES), 0, tokens=5)
    with pytest.raises(ValueError, match="Nobody has counted the operations of rwkv7 layers: only of mamba2, ska"):
        training_cost(EchoConfig(**SIZES, layer_types=["mamba2", "rwkv7", "mamba2"]), 8, tokens=5)
