"""What somebody finds who has just installed the wheel: `make check-wheel` runs this in a fresh environment.

Not a test that pytest collects: it wants an interpreter with the wheel and its dependencies alone (so without triton),
and a folder with nothing in it.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

ROOMS = (
    "ops",
    "algebra",
    "nn",
    "models",
    "parallel",
    "memory",
    "tasks",
    "training",
    "evaluation",
    "serving",
    "experiments",
)
INNER = ("sealed", "benchmarks", "commands")
NEED_EXTRAS = {"AssociativeMemoryRegressor": "sklearn"}
"""Public names that need more than the wheel's own dependencies, and what."""


def check_environment() -> None:
    """The wheel's package, installed; no triton; an empty folder."""
    import echo_ska

    assert Path(echo_ska.__file__).is_relative_to(sys.prefix), f"{echo_ska.__file__} is not the installed wheel"
    assert not list(Path.cwd().iterdir()), "run this in an empty folder"
    for absent in ("triton", *NEED_EXTRAS.values()):
        assert importlib.util.find_spec(absent) is None, f"{absent} is installed here: use a fresh environment"


def check_imports() -> None:
    """Every package imports, and every public name but those that need an extra, which say so."""
    for room in (*ROOMS, *INNER):
        package = importlib.import_module(f"echo_ska.{room}")
        for name in getattr(package, "__all__", ()):
            said = ""
            try:
                getattr(package, name)
            except ImportError as error:
                said = str(error)
            assert NEED_EXTRAS.get(name, "") in said, f"{name} should need {NEED_EXTRAS[name]}"
            assert name in NEED_EXTRAS or not said, f"{package.__name__}.{name}: {said}"


def check_commands() -> None:
    """The command is on the path of the environment, answers its version, and lists the models."""
    import echo_ska

    program = Path(sys.executable).with_name("echo-ska")
    assert run(program, "--version") == f"echo-ska {echo_ska.__version__}\n"
    assert "echo-180m" in run(program, "models")


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_layer() -> None:
    """A layer's gradients are there and finite, by the C kernels where there is a compiler, else by PyTorch."""
    import torch

    from echo_ska.nn import SpectralKoopmanAttention
    from echo_ska.ops.native.build import why_unavailable

    torch.manual_seed(0)
    layer = SpectralKoopmanAttention(hidden_size=32, num_heads=2, rank=8)
    output, _ = layer(torch.randn(2, 70, 32))
    output.square().mean().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    print(f"C kernels: {why_unavailable() or 'compiled'}")


def check_model() -> None:
    """A small random model writes, and a file that came with the wheel is found."""
    import torch

    from echo_ska.models import EchoConfig, EchoForCausalLM
    from echo_ska.training import book_path

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "ska_layers": [1], "num_heads": 2, "rank": 8, "state_size": 8}
    model = EchoForCausalLM(EchoConfig(vocab_size=64, **sizes)).eval()
    written = model.generate(torch.arange(9)[None], max_new_tokens=5, do_sample=False)
    assert list(written.shape) == [1, 14]
    assert book_path("unseen").stat().st_size > 100_000


if __name__ == "__main__":
    for check in (check_environment, check_imports, check_commands, check_layer, check_model):
        check()
        print(f"{check.__name__}: well")
