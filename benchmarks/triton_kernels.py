"""Compile every Triton kernel for a GPU that need not be there, and print what each takes of its registers.

    python benchmarks/triton_kernels.py [--arch 80 90] [--rank 48] [--head-dim 64] [--chunk-size 32] [--power 2]

A line a kernel and variant: warps, registers a thread, bytes of stack a thread (what did not fit the registers), shared
memory a program. Exits with 1 if a kernel does not compile. Takes about two seconds a kernel on one core.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from echo_ska.ops.arguments import check_arguments
from echo_ska.ops.triton import call, decoding, function, route

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
DTYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}
Launch = tuple[JITFunction, dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any], dict[str, Any]]


def launches(rank: int, head_dim: int, chunk_size: int, power: int, dtype: torch.dtype, precision: str) -> list[Launch]:
    """Every different launch of a training step (two readings) and of a decoding step; nothing runs."""
    recorded: dict[str, Launch] = {}

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        options = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
        signature, constants, attributes = {}, {}, {}
        given = dict(zip(kernel.arg_names, args, strict=False)) | keywords
        for place, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
            argument = given[name]
            if parameter.is_constexpr or argument is None or (isinstance(argument, int) and argument == 1):
                signature[name], constants[(place,)] = "constexpr", argument
            elif isinstance(argument, Tensor):
                signature[name] = "*" + DTYPES[argument.dtype]
                attributes[(place,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "i32"
                if argument % 16 == 0:
                    attributes[(place,)] = [["tt.divisibility", 16]]
        key = f"{kernel.__name__} {signature} {constants} {options}"
        recorded.setdefault(key, (kernel, signature, constants, attributes, options))

    function._require_success = lambda *_: None  # type: ignore[assignment]
    call.dot_precision = lambda device: precision  # type: ignore[assignment]
    JITFunction.run = record
    time, heads = 3 * chunk_size, 2
    query, key = (torch.zeros(1, time, heads, rank, dtype=dtype, requires_grad=True) for _ in range(2))
    value = torch.zeros(1, time, heads, head_dim, dtype=dtype, requires_grad=True)
    weight = torch.full((1, time, heads), 0.5, dtype=dtype)
    for reading in ({"causal": True, "refresh_interval": None}, {"causal": True, "refresh_interval": 64}):
        arguments = check_arguments(
            query,
            key,
            value,
            weight,
            ridge=1.0,
            power=power,
            blend=weight,
            gain=1.0,
            scale=1.0,
            initial_state=None,
            cu_seqlens=None,
            **reading,
        )
        output, _ = route.triton_attention(arguments, chunk_size)
        output.sum().backward()
    state = [torch.zeros(1, heads, *shape).double() for shape in ((2 * rank + head_dim, rank), (rank, rank), (rank,))]
    token = (query[:, 0].detach(), key[:, 0].detach(), value[:, 0].detach())
    factor = weight[:, 0].float()
    decoding.decode_step(*state, *token, weight[:, 0], factor, factor, power)
    return list(recorded.values())


def report(launch: Launch, arch: int) -> str:
    """Compile one launch for compute capability arch / 10 and say what it takes."""
    kernel, signature, constants, attributes, options = launch
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    flags = {kernel.arg_names[place]: value for (place,), value in constants.items() if value in (True, False, None)}
    flags = {name: value for name, value in flags.items() if value is None or isinstance(value, bool)}
    said = ", ".join(f"{name}={value}" for name, value in flags.items())
    return (
        f"sm_{arch} {kernel.__name__:26} warps {compiled.metadata.num_warps:2} registers {registers:3} "
        f"stack {stack:5} shared {compiled.metadata.shared:6}  {said}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--rank", type=int, default=48)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--chunk-size", type=int, default=32)
    parser.add_argument("--power", type=int, default=2)
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--precision", choices=("ieee", "tf32x3"), default="tf32x3")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("unset TRITON_INTERPRET: the interpreter compiles nothing")
    dtype = getattr(torch, options.dtype)
    found = launches(options.rank, options.head_dim, options.chunk_size, options.power, dtype, options.precision)
    failed = 0
    for arch in options.arch:
        for launch in found:
            if options.kernel not in launch[0].__name__:
                continue
            try:
                print(report(launch, arch), flush=True)
            except Exception as error:  # whatever the compiler raises is a finding
                failed += 1
                print(f"sm_{arch} {launch[0].__name__}: {type(error).__name__}: {str(error)[-1500:]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
