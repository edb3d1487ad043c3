"""Echo: recall without a KV cache."""

__version__ = "0.1.0"
