"""The kernels as a compiler for GPUs sees them, which needs no GPU; the other tests see Python's numbers on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from echo_ska.ops.triton import moment_gradient

kernel = getattr(moment_gradient, sys.argv[1])
chosen = dict(NEGATIVE=True, POINTS=3, POWER=2, FIELDS=5, TOKENS=16, ROWS=16, RANK=16, PRECISION="ieee")
pointers = dict.fromkeys(("left", "right", "gradient", "points", "output_grad", "plain", "filtered"), "*fp32")
pointers |= dict.fromkeys(("edges", "blocks"), "*i64")
names = kernel.arg_names
signature = {name: "constexpr" if name in chosen else pointers.get(name, "i32") for name in names}
source = ASTSource(fn=kernel, signature=signature, constexprs={n: chosen[n] for n in names if n in chosen})
print(triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ttir"])
"""


@pytest.mark.parametrize("kernel", ["square_gradient_kernel", "value_moment_gradient_kernel"])
def test_planes_are_counted_in_64_bits(kernel, tmp_path):
    """A plane holds one vector a token and head: 2^31 numbers are a few planes of a long sequence."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, kernel]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    products = [line for line in done.stdout.splitlines() if "arith.muli" in line]
    assert products
    assert not [line for line in products if "%plane" in line and ": i32" in line]
