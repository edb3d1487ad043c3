"""Compiled kernels for the CPU."""

from echo_ska.ops.native.attention import native_attention, why_not_native

__all__ = ["native_attention", "why_not_native"]
