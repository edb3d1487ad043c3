"""GPU kernels in Triton behind `backend="triton"`. Importing this package needs no triton; its `route` does."""
