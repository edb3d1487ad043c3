"""Experiments on recall by trained models, one module a table or figure."""
