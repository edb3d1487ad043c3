"""Experiments on the algebra alone, without training: the fitted operator, keys that occur once, recall per byte."""
