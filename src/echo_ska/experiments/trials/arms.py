"""The models that experiments compare: one class, one size, with another mixer where Echo has SKA.

Two sizes: `small`, three layers of width 64 with the compared mixer in the middle, which two CPU cores train in a
minute or two; and `million`, the preset echo-1m. Twins have the parameter count of the arm with SKA, by their
feed-forward width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from echo_ska.experiments.trials.changes import even_mamba_aids, no_positions
from echo_ska.experiments.trials.trial import Arm, as_large_as
from echo_ska.models import EchoConfig
from echo_ska.models.presets import find_preset

ECHO = "ssm+ska"
IN_PLACE_OF_SKA = {"ssm": "mamba2", "ssm+attention": "full_attention", ECHO: "ska"}
"""The three kinds that every claim is about, by the names of tables and pictures."""
AIDED = "ssm, with the aids"
NO_POSITIONS = "ssm+attention, no positions"

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_heads": 2,
    "rank": 16,
    "state_size": 16,
}


def small(mixer: str, name: str | None = None, **fields: Any) -> Arm:
    """Mamba-2, `mixer`, Mamba-2 at width 64. `fields` replace those of `SMALL`."""
    return Arm(name or mixer, {**SMALL, "layer_types": ["mamba2", mixer, "mamba2"], **fields})


def small_arms(vocab_size: int, **fields: Any) -> list[Arm]:
    """SSM, SSM + attention and SSM + SKA, of equal parameters."""
    echo = small("ska", ECHO, **fields)
    return [
        echo if mixer == "ska" else as_large_as(small(mixer, name, **fields), echo, vocab_size)
        for name, mixer in IN_PLACE_OF_SKA.items()
    ]


def with_controls(arms: list[Arm]) -> list[Arm]:
    """The arms, and behind two of them the same with one change: what another start and no positions are worth.

    The SSM as published gets the others' aids in all of its layers; attention loses its rotary positions, which it does
    not know beyond the training's length (order it has from Mamba-2, as SKA has).
    """
    changed = {"ssm": (AIDED, even_mamba_aids), "ssm+attention": (NO_POSITIONS, no_positions)}
    found = []
    for arm in arms:
        found.append(arm)
        if arm.name in changed:
            name, change = changed[arm.name]
            found.append(dataclasses.replace(arm, name=name, changes=(*arm.changes, change)))
    return found


def million_arms(vocab_size: int, **fields: Any) -> list[Arm]:
    """The same three in the size of echo-1m."""
    own = {
        name: value for name, value in find_preset("echo-1m").fields.items() if name not in ("vocab_size", "ska_layers")
    }
    layers = EchoConfig(**find_preset("echo-1m").fields).layer_types

    def arm(name: str, mixer: str) -> Arm:
        return Arm(name, {**own, "layer_types": [mixer if kind == "ska" else kind for kind in layers], **fields})

    echo = arm(ECHO, "ska")
    return [
        echo if mixer == "ska" else as_large_as(arm(name, mixer), echo, vocab_size)
        for name, mixer in IN_PLACE_OF_SKA.items()
    ]
