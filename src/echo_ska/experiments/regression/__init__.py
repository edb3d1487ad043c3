"""Regression in context: does a trained head come to predict as ridge regression does?"""
