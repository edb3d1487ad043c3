"""The tables that the laws run over: adding an implementation or a setting is adding a row."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_ska.ops import RecurrentState, spectral_koopman_attention

# name -> keyword arguments of the front door that choose the implementation
IMPLEMENTATIONS = {
    "recurrent": {"backend": "recurrent"},
    "chunked-16": {"backend": "chunked", "chunk_size": 16},
    "chunked-default": {"backend": "chunked"},
    "auto": {"backend": "auto"},  # on a CPU with a C compiler: native wherever it can take the call
}
# name -> the three ways to choose the statistics a token reads
READINGS = {
    "exact": {},
    "refresh-1": {"refresh_interval": 1},
    "refresh-5": {"refresh_interval": 5},
    "refresh-64": {"refresh_interval": 64},
    "non-causal": {"causal": False},
}
CAUSAL_READINGS = [name for name in READINGS if name != "non-causal"]
LENGTHS = [1, 7, 63, 65, 130]


@dataclasses.dataclass
class Case:
    """Inputs of one call: tensors by name, and everything else by keyword."""

    tensors: dict[str, Tensor]
    settings: dict

    def run(self, **overrides) -> tuple[Tensor, RecurrentState]:
        arguments = self.tensors | self.settings | {"output_final_state": True} | overrides
        output, state = spectral_koopman_attention(**arguments)
        assert state is not None
        return output, state

    def tokens(self, begin: int, end: int) -> Case:
        """The same call for some of the tokens."""
        cut = {name: t[:, begin:end] if t.dim() > 1 else t for name, t in self.tensors.items()}
        return Case(cut, self.settings)

    def rows(self, *rows: int) -> Case:
        """The same call for some rows of the batch."""
        cut = {name: t[list(rows)] if t.dim() > 1 else t for name, t in self.tensors.items()}
        return Case(cut, self.settings)

    def packed(self) -> Case:
        """The rows one after the other in a batch of one row, without boundaries."""
        cut = {name: t.flatten(0, 1).unsqueeze(0) if t.dim() > 1 else t for name, t in self.tensors.items()}
        return Case(cut, self.settings)

    def requires_grad(self) -> Case:
        return Case({name: t.detach().clone().requires_grad_() for name, t in self.tensors.items()}, self.settings)

    def to(self, dtype: torch.dtype) -> Case:
        return Case({name: t.to(dtype) for name, t in self.tensors.items()}, self.settings)


def make_case(
    time: int,
    *,
    batch: int = 2,
    heads: int = 2,
    rank: int = 5,
    head_dim: int = 3,
    power: int = 2,
    blend: bool = False,
    masks: bool = True,
    seed: int = 0,
    **settings,
) -> Case:
    """Random float64 inputs: unit-norm keys, weights in [0.05, 1], a different ridge, gain and scale per head."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    tensors = {
        "query": normal(batch, time, heads, rank),
        "key": F.normalize(normal(batch, time, heads, rank), dim=-1),
        "value": normal(batch, time, heads, head_dim),
        "ridge": 0.2 + uniform(heads),
        "gain": 0.8 + 0.4 * uniform(heads),
        "scale": 0.5 + uniform(heads),
    }
    if masks:
        tensors["write_weight"] = 0.05 + 0.95 * uniform(batch, time, heads)
    if blend:
        tensors["blend"] = uniform(batch, time, heads)
    return Case(tensors, {"power": power, **settings})


def outcome(case: Case, **overrides) -> dict[str, Tensor]:
    """Outputs, final state and the gradients of a random function of both, by name."""
    case = case.requires_grad()
    output, state = case.run(**overrides)
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    sums = {name: t for name, t in state.tensors().items() if t.is_floating_point()}
    objective = (output.double() * target).sum() + sum(t.double().sin().sum() for t in sums.values())
    names = list(case.tensors)
    gradients = torch.autograd.grad(objective, list(case.tensors.values()), allow_unused=True)
    found = {"output": output} | {f"state.{name}": t for name, t in state.tensors().items()}
    for name, gradient in zip(names, gradients, strict=True):
        found[f"gradient of {name}"] = torch.zeros_like(case.tensors[name]) if gradient is None else gradient
    return {name: t.detach() for name, t in found.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every entry agrees within `tolerance` of the expected entry's largest magnitude (or 1)."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        value = value.detach()
        error = (found[name].detach().double() - value.double()).abs().max() if value.numel() else torch.tensor(0.0)
        limit = tolerance * max(1.0, float(value.double().abs().max()) if value.numel() else 1.0)
        assert float(error) <= limit, f"{name}: error {float(error):.3g} > {limit:.3g}"
