"""What is said of saved weights whose shapes are not the model's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn


class OtherShapesError(ValueError, RuntimeError):
    """Saved weights have other shapes than the model's parameters; of transformers' loading this is a RuntimeError."""


def require_shapes(
    model: nn.Module, mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]], source: Any
) -> None:
    """Raise `OtherShapesError`, naming the model's first parameter that differs, unless none does.

    Args:
        model: of the configuration.
        mismatched: name, saved shape and the model's shape of each that differs, as transformers' loading has them.
        source: the folder or name that the weights came from.
    """
    if not mismatched:
        return
    shapes = {name: (list(saved), list(wanted)) for name, saved, wanted in mismatched}
    first = next((name for name in model.state_dict() if name in shapes), min(shapes))
    saved, wanted = shapes[first]
    others = f" ({len(shapes) - 1} more differ)" if len(shapes) > 1 else ""
    raise OtherShapesError(
        f"the weights in {source} do not fit its config.json: {first} is {saved} in them and {wanted} by the "
        f"configuration{others}; put back the config.json that was saved with them"
    )
