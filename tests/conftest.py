"""Shared set-up: one thread a test, so that timings and memory are steady on small machines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
# Read when triton is first imported, which other tests may do before those of the kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.insert(0, str(Path(__file__).parent / "laws"))
