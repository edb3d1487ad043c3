"""Contexts as values: what was read once is kept, joined, taken apart, saved and asked again."""

from __future__ import annotations

import importlib
from typing import Any

from echo_ska.memory.associative import AssociativeMemory

# Imported when they are first asked for, since they need more than torch: name -> module.
_LATER = {
    "AssociativeMemoryRegressor": "echo_ska.memory.estimator",
    "ContextState": "echo_ska.memory.context",
    "ContextStore": "echo_ska.memory.store",
    "StoredContext": "echo_ska.memory.store",
    "model_fingerprint": "echo_ska.memory.fingerprint",
}

__all__ = [
    "AssociativeMemory",
    "AssociativeMemoryRegressor",
    "ContextState",
    "ContextStore",
    "StoredContext",
    "model_fingerprint",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
