"""A model folder that loads where this package is not installed."""

from echo_ska.models.export.folder import export_model
from echo_ska.models.export.source import modeling_source

__all__ = ["export_model", "modeling_source"]
