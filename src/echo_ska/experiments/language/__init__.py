"""Experiments on real text: language models compared, converted, scaled, and asked without training for it."""
