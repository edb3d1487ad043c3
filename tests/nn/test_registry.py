"""Mixers by name: the peers of SKA are built from a configuration, and imported no sooner."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from echo_ska.evaluation.memory import model_memory
from echo_ska.memory import encoding
from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.nn import registry

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_heads": 2,
    "rank": 8,
    "head_dim": 12,
    "conv_kernel": 3,
    "state_size": 6,
    "sliding_window": 5,
}


# The shape of what a peer remembers in the sizes above, and the channels of its convolution.
PLAIN = {"memory": (2, 12, 8)}, 2 * (8 + 8 + 12)
SPACE = {"angle": (1, 1), "ssm": (1, 64, 6), "previous_b": (1, 6), "previous_x": (1, 64)}
STATES = {
    "linear_attention": PLAIN,
    "delta_net": PLAIN,
    "gated_delta_net": PLAIN,
    "gla": PLAIN,
    "rwkv7": PLAIN,
    "based": ({"memory": (2, 12 + 1, 1 + 8 + 36)}, 2 * (8 + 8 + 12)),
    "mesa_net": ({"memory": (2, 12 + 8, 8)}, 2 * (8 + 8 + 12)),
    "mamba3": (SPACE, 6 + 6 + 64),
    "mamba3-paper": (SPACE, 0),
    "sliding_attention": ({"key": (5, 2, 12), "value": (5, 2, 12), "lengths": ()}, 3 * 2 * 12),
}


@pytest.mark.parametrize("name", registry.PEERS)
def test_a_peer_has_the_sizes_of_the_configuration(name):
    shapes, channels = STATES[name]
    found = registry.MIXERS[name](EchoConfig(**SIZES)).init_state(1).tensors()
    assert found.pop("convolution").numel() == 2 * channels
    assert {field: tuple(tensor.shape[1:]) for field, tensor in found.items()} == shapes


@pytest.mark.parametrize("name", registry.PEERS)
def test_its_state_is_counted_by_kind_and_kept(name):
    config = EchoConfig(**SIZES, num_hidden_layers=3, layer_types=["mamba2", name, name])
    counted = model_memory(name, config, [1, 20, 100_000], measured_up_to=20).rows
    assert [row.measured for row in counted] == [True, True, False]
    shapes, channels = STATES[name]
    numbers = 2 * channels + sum(math.prod(shape) for shape in shapes.values())
    counters = 4 if "lengths" in shapes else 0  # an int64 takes as much again
    assert {row.by_kind[name] for row in counted} == {2 * (4 * numbers + counters)}
    torch.manual_seed(0)
    model = EchoForCausalLM(config).eval()
    tokens = torch.randint(0, 50, (1, 20))
    cache = model(tokens, use_cache=True).past_key_values
    again = encoding.decode(config, encoding.encode(cache), 20)
    with torch.no_grad():
        assert torch.equal(model(tokens, past_key_values=again).logits, model(tokens, past_key_values=cache).logits)


def test_peers_are_imported_when_a_model_asks_for_one():
    code = (
        "import sys\n"
        "from echo_ska.models import EchoConfig, EchoForCausalLM\n"
        "assert not any(name.startswith('echo_ska.nn.peers') for name in sys.modules)\n"
        "EchoForCausalLM(EchoConfig(num_hidden_layers=1, layer_types=['delta_net']))\n"
        "assert 'echo_ska.nn.peers.delta' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_that_holds_no_such_peer_says_what_to_install(monkeypatch):
    monkeypatch.setattr(registry, "PEERS_AT_HAND", {})
    monkeypatch.setitem(registry.PEERS, "delta_net", "not_installed.delta.DeltaNet")
    with pytest.raises(ValueError, match="delta_net layers need the package echo-ska"):
        registry.MIXERS["delta_net"](EchoConfig(**SIZES))
