"""The table of routes: adding one is adding a row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_ska.benchmarks import definitions, operations
from echo_ska.benchmarks.linear_attention import linear_attention
from echo_ska.benchmarks.operations import Operations
from echo_ska.benchmarks.plan import Sizes, UnavailableError
from echo_ska.benchmarks.sources import Inputs
from echo_ska.nn.fla import Kernel, fla_function
from echo_ska.nn.mamba2 import DEFAULT_CHUNK_SIZE, state_space_scan
from echo_ska.ops import spectral_koopman_attention

TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 3e-2}
"""Largest error that the gate lets through, as a share of the largest entry, by the dtype of a route's inputs."""


@dataclass(frozen=True)
class Route:
    """One way from queries, keys and values to outputs.

    Attributes:
        label: how tables and pictures call it.
        inputs: the kind of its inputs, a name in `sources.INPUTS`.
        run: what is timed: the inputs by name to the outputs [1, T, H, P].
        definition: the same in float64 and slowly, for a short length.
        reference: the same in float64 for a longer length; the gate holds it to `definition` first.
        operations: counted, by length; None where nobody has counted.
        segment: (inputs of a segment, state) to (outputs, state), from None; None where a route keeps no state.
        dtype: of the timed inputs.
        backend: of the front door, where the route goes through it.
        softmax: whether it is softmax attention, which the others are compared with.
    """

    label: str
    inputs: str
    run: Callable[..., Tensor]
    definition: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    operations: Callable[[int], Operations] | None = None
    segment: Callable[[Inputs, Any], tuple[Tensor, Any]] | None = None
    dtype: torch.dtype = torch.float32
    backend: str | None = None
    softmax: bool = False

    def seconds_at(self, tokens: int, shorter: int, seconds: float) -> float:
        """Predicted seconds at `tokens` from those measured at fewer."""
        if self.operations is None:
            return seconds * tokens / shorter
        return seconds * self.operations(tokens).total / self.operations(shorter).total


Maker = Callable[[Sizes, str], Route]
"""(sizes, device) to a route; raises UnavailableError where it cannot run."""


def ska_route(label: str, sizes: Sizes, backend: str, **settings: Any) -> Route:
    """A row for the front door with this backend and these settings."""
    function: dict[str, Any] = {"ridge": sizes.ridge, "power": sizes.power} | settings

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return spectral_koopman_attention(query, key, value, backend=backend, **function)[0]

    def by_backend(other: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return spectral_koopman_attention(query, key, value, backend=other, **function)[0]

    def segment(tokens: Inputs, state: Any) -> tuple[Tensor, Any]:
        return spectral_koopman_attention(
            **tokens, initial_state=state, output_final_state=True, backend=backend, **function
        )

    widths = {"heads": sizes.heads, "rank": sizes.rank, "head_dim": sizes.head_dim, "power": function["power"]}
    if (interval := settings.get("refresh_interval")) is not None:
        count = functools.partial(operations.chunk_causal_read, refresh_interval=interval, **widths)
    else:
        count = functools.partial(operations.exact_read, **widths)
    return Route(
        label,
        "regression",
        run,
        functools.partial(by_backend, "recurrent"),
        functools.partial(by_backend, "chunked"),
        count,
        segment,
        backend=backend,
    )


@functools.cache
def best_backend(device: str) -> str:
    """What the front door's "auto" comes to for several tokens on a device: kernels where there are any."""
    few = torch.ones(1, 2, 1, 2, device=device)
    for backend in ("native", "triton"):
        try:
            spectral_koopman_attention(few, few, few, ridge=1.0, backend=backend)
        except ValueError:
            continue
        return backend
    return "chunked"


def _ska(label: str, **settings: Any) -> Maker:
    """The front door as a user meets it."""
    return lambda sizes, device: ska_route(label.format(sizes=sizes), sizes, best_backend(device), **settings)


def _ska_chunk_causal(sizes: Sizes, device: str) -> Route:
    label = f"SKA, chunk-causal {sizes.refresh_interval}"
    return ska_route(label, sizes, best_backend(device), refresh_interval=sizes.refresh_interval)


def _ska_pytorch(sizes: Sizes, device: str) -> Route:
    if best_backend(device) == "chunked":
        raise UnavailableError("there are no kernels for this device, so the route ska is this one")
    return ska_route(f"SKA, exact, power {sizes.power}, PyTorch", sizes, "chunked")


def _ska_bfloat16(sizes: Sizes, device: str) -> Route:
    _require_cuda(device)
    return replace(_ska("SKA, exact, power {sizes.power}, bf16")(sizes, device), dtype=torch.bfloat16)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal softmax attention of [1, T, H, D] by torch's fastest way."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)


def softmax_route(label: str, sizes: Sizes, run: Callable[..., Tensor] = attend) -> Route:
    """A row for softmax attention of the values' width."""
    count = functools.partial(operations.softmax_attention, heads=sizes.heads, head_dim=sizes.head_dim)
    definition = definitions.softmax_attention
    return Route(label, "softmax", run, definition, definition, count, softmax=True)


def linear_route(label: str, sizes: Sizes, run: Callable[..., Tensor] | None = None, segment: Any = None) -> Route:
    """A row for unnormalised linear attention with SKA's widths; the pure PyTorch one unless told."""
    count = functools.partial(operations.linear_attention, heads=sizes.heads, rank=sizes.rank, head_dim=sizes.head_dim)
    definition = definitions.linear_attention

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return linear_attention(query, key, value)[0]

    def carried(tokens: Inputs, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return linear_attention(**tokens, state=state)

    if run is None:
        run, segment = ours, carried
    return Route(label, "regression", run, definition, definition, count, segment)


def _scan_route(sizes: Sizes, device: str) -> Route:
    def run(**inputs: Any) -> Tensor:
        return state_space_scan(**inputs)[0]

    def segment(tokens: Inputs, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return state_space_scan(**tokens, state=state, output_state=True)

    count = functools.partial(
        operations.state_space_scan,
        heads=sizes.heads,
        head_dim=sizes.head_dim,
        state_size=sizes.state_size,
        chunk_size=DEFAULT_CHUNK_SIZE,
    )
    return Route("Mamba-2's scan", "scan", run, definitions.state_space_scan, run, count, segment)


def _require_cuda(device: str) -> None:
    if device != "cuda":
        raise UnavailableError("it runs on a GPU only")


def _softmax_flash(sizes: Sizes, device: str) -> Route:
    _require_cuda(device)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def run(**inputs: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return attend(**inputs)

    return replace(softmax_route("FlashAttention, bf16", sizes, run), dtype=torch.bfloat16)


def _fla(name: str) -> Kernel:
    """A function of flash-linear-attention by its name below `fla.ops`."""
    kernel = fla_function(f"fla.ops.{name}")
    if kernel is None:
        raise UnavailableError(f"flash-linear-attention is missing, or lacks {name}: pip install 'echo-ska[gpu]'")
    return kernel


def _fla_linear(sizes: Sizes, device: str) -> Route:
    _require_cuda(device)
    chunk_linear_attn = _fla("linear_attn.chunk_linear_attn")

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output: Tensor = chunk_linear_attn(query, key, value, scale=1.0, normalize=False)[0]
        return output

    return replace(linear_route("linear attention, fla, bf16", sizes, run), dtype=torch.bfloat16)


def _fla_gated_delta(sizes: Sizes, device: str) -> Route:
    _require_cuda(device)
    chunk_gated_delta_rule = _fla("gated_delta_rule.chunk_gated_delta_rule")

    def run(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, write_weight: Tensor) -> Tensor:
        output: Tensor = chunk_gated_delta_rule(query, key, value, log_decay.float(), write_weight)[0]
        return output

    definition = definitions.gated_delta_rule
    return Route("gated delta rule, fla, bf16", "gated", run, definition, definition, dtype=torch.bfloat16)


def _fla_mesa(sizes: Sizes, device: str) -> Route:
    _require_cuda(device)
    chunk_mesa_net = _fla("mesa_net.chunk_mesa_net")
    ridge = torch.full((sizes.heads, sizes.head_dim), sizes.ridge, device=device)

    def run(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, write_weight: Tensor) -> Tensor:
        gates = (log_decay.float(), write_weight.float())
        output: Tensor = chunk_mesa_net(query, key, value, *gates, ridge)[0]
        return output

    definition = functools.partial(definitions.mesa_net, ridge=sizes.ridge)
    return Route("MesaNet, fla, bf16", "square gated", run, definition, definition, dtype=torch.bfloat16)


ROUTES: dict[str, Maker] = {
    "ska": _ska("SKA, exact, power {sizes.power}"),
    "ska-power-0": _ska("SKA, exact, power 0", power=0),
    "ska-chunk-causal": _ska_chunk_causal,
    "ska-recompute": _ska("SKA, exact, power {sizes.power}, recompute", recompute=True),
    "ska-kept": _ska("SKA, exact, power {sizes.power}, all kept", recompute=False),
    "ska-pytorch": _ska_pytorch,
    "softmax": lambda sizes, device: softmax_route("softmax attention", sizes),
    "linear": lambda sizes, device: linear_route("linear attention", sizes),
    "mamba2": _scan_route,
    "ska-bf16": _ska_bfloat16,
    "softmax-flash": _softmax_flash,
    "linear-fla": _fla_linear,
    "gated-delta-fla": _fla_gated_delta,
    "mesa-fla": _fla_mesa,
}


def make_routes(names: tuple[str, ...] | None, sizes: Sizes, device: str) -> tuple[dict[str, Route], dict[str, str]]:
    """The routes by name, and why the others cannot run here.

    Raises:
        ValueError: a route asked for by name is unknown, or cannot run here.
    """
    for name in names or ():
        if name not in ROUTES:
            raise ValueError(f"there is no route {name!r}: choose from {', '.join(ROUTES)}")
    made, absent = {}, {}
    for name in names or ROUTES:
        try:
            made[name] = ROUTES[name](sizes, device)
        except UnavailableError as reason:
            if names is not None:
                raise ValueError(f"the route {name!r} cannot run here: {reason}") from None
            absent[name] = str(reason)
    return made, absent
