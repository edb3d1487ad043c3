"""What is counted is what was sent."""

from __future__ import annotations

import torch

from echo_ska.parallel import Traffic


def test_bytes_and_messages_by_name_and_phase() -> None:
    traffic = Traffic()
    for size in (3, 4):
        traffic.count("layer", "forward", torch.zeros(size, dtype=torch.float64))
    traffic.count("layer", "backward", torch.zeros(5))
    assert traffic.layers("forward") == {"layer": (2, 56)}
    assert traffic.layers("backward") == {"layer": (1, 20)}
    traffic.reset()
    assert traffic.layers("forward") == {}
