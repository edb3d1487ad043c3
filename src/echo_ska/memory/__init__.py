"""Contexts as values: a model's state after a text, kept, forked, saved and found again."""

from echo_ska.memory.context import ContextState
from echo_ska.memory.fingerprint import model_fingerprint
from echo_ska.memory.store import ContextStore, StoredContext

__all__ = ["ContextState", "ContextStore", "StoredContext", "model_fingerprint"]
