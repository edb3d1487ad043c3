"""A route that does not compute its definition is named and gets no speed."""

from __future__ import annotations

import dataclasses
import math
import sys
from types import ModuleType

import pytest
import torch

from echo_ska.benchmarks import decoding, layers, routes
from echo_ska.benchmarks.decoders import DECODERS
from echo_ska.benchmarks.gate import judge, largest_error
from echo_ska.benchmarks.layers import LAYERS, judge_layer
from echo_ska.benchmarks.plan import Plan, Sizes, UnavailableError
from echo_ska.benchmarks.routes import ROUTES, make_routes
from echo_ska.benchmarks.run import run_benchmark
from echo_ska.benchmarks.summary import TABLES, rows_of
from echo_ska.nn.fla import fla_function

SIZES = Sizes(heads=2, rank=4, head_dim=6, refresh_interval=8, state_size=4)
HERE, ABSENT = make_routes(None, SIZES, "cpu")


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.01 * gradient


def broken(what: str, softmax: bool = False):
    route = routes.softmax_route("broken", SIZES)
    runs = {
        "output": lambda query, key, value: 1.001 * routes.attend(query, key, value),
        "gradient": lambda query, key, value: routes.attend(query, WrongGradient.apply(key), value),
        "future": lambda query, key, value: torch.nn.functional.scaled_dot_product_attention(
            *(tensor.transpose(1, 2) for tensor in (query, key, value))
        ).transpose(1, 2),
        "NaN": lambda query, key, value: routes.attend(query, key, value) + math.nan * value,
        "shape": lambda query, key, value: routes.attend(query, key, value)[:, 1:],
    }

    def raise_it(**inputs):
        raise RuntimeError("no kernel\nfor this")

    return dataclasses.replace(route, run=runs.get(what, raise_it), softmax=softmax)


@pytest.mark.parametrize("name", HERE)
def test_every_route_that_runs_here_passes(name):
    verdict = judge(HERE[name], SIZES, "cpu", (19, 70))
    assert verdict.passed, verdict.reason
    assert 0 < verdict.error <= verdict.tolerance


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("output", "its error is 1.0e-03"),
        ("gradient", "its error is 1.0e-02"),
        ("future", "its error is"),
        ("NaN", "inf"),
        ("shape", ""),
        ("raises", "it raised RuntimeError: no kernel for this"),
    ],
)
def test_a_wrong_route_fails(what, reason):
    verdict = judge(broken(what), SIZES, "cpu", (19, 70))
    assert not verdict.passed
    assert verdict.reason is not None
    assert reason in verdict.reason


def test_a_wrong_reference_fails():
    right = HERE["ska"]
    wrong = dataclasses.replace(right, reference=lambda **inputs: right.reference(**inputs) * (1 + 1e-6))
    verdict = judge(wrong, SIZES, "cpu", (19, 70))
    assert verdict.reason is not None
    assert "of its float64 reference" in verdict.reason


def test_a_route_that_fails_is_named_and_gets_no_speed(monkeypatch):
    monkeypatch.setitem(ROUTES, "broken", lambda sizes, device: broken("gradient"))
    plan = Plan(
        name="own",
        routes=("softmax", "broken"),
        parts=("training", "prefill"),
        lengths=(8,),
        gate_lengths=(19, 70),
        prefill=(16, 8),
        rounds=1,
        sizes=SIZES,
    )
    record = run_benchmark(plan)
    assert record.figures["gate"]["broken"]["reason"].startswith("its error is 1.0e-02")
    assert list(record.figures["training"]) == list(record.figures["prefill"]) == ["softmax"]
    assert any("broken did not pass the gate and is not timed" in note for note in record.figures["notes"])
    for name in TABLES:
        timed = [row[0] for row in rows_of(name, record)]
        assert ("broken" in timed) == (name == "gate")


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_passes(name):
    verdict = decoding.judge_decoder(DECODERS[name](SIZES, "cpu"), SIZES, "cpu")
    assert verdict.passed, verdict.reason


def test_a_wrong_decoder_fails():
    decoder = DECODERS["linear"](SIZES, "cpu")
    forgetful = dataclasses.replace(decoder, step=lambda state, token: decoder.step(state.clone(), token))
    assert not decoding.judge_decoder(forgetful, SIZES, "cpu").passed


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_passes(name):
    torch.manual_seed(0)
    verdict = judge_layer(LAYERS[name](SIZES), SIZES, "cpu", 19)
    assert verdict.passed, verdict.reason


def test_transformers_mamba2_with_other_weights_fails():
    torch.manual_seed(0)
    layer = LAYERS["mamba2-transformers-64"](SIZES)
    with torch.no_grad():
        layer.module.A_log.add_(0.01)
    assert not judge_layer(layer, SIZES, "cpu", 19).passed


def test_errors_are_relative_to_each_tensors_largest_entry():
    small, large = torch.tensor([1e-3, 0.0]), torch.tensor([1e3, 0.0])
    assert largest_error([large + torch.tensor([0.0, 1.0]), small], [large, small]) == pytest.approx(1e-3)
    assert largest_error([large, small + torch.tensor([0.0, 1e-3])], [large, small]) == pytest.approx(1.0)
    assert largest_error([large[:1]], [large]) == math.inf


def test_a_row_that_cannot_run_here_is_refused_by_name():
    assert "softmax-flash" in ABSENT
    with pytest.raises(ValueError, match="the route 'softmax-flash' cannot run here: it runs on a GPU only"):
        make_routes(("softmax-flash",), SIZES, "cpu")
    with pytest.raises(ValueError, match="there is no route 'x': choose from ska"):
        make_routes(("x",), SIZES, "cpu")


def test_a_release_of_fla_without_the_function_leaves_the_route_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla.ops.mesa_net", ModuleType("fla.ops.mesa_net"))
    monkeypatch.setattr(routes, "fla_function", fla_function.__wrapped__)  # what is cached stays as it is
    with pytest.raises(UnavailableError, match=r"lacks mesa_net.chunk_mesa_net: pip install 'echo-ska\[gpu\]'"):
        ROUTES["mesa-fla"](SIZES, "cuda")


def test_rows_belong_to_routes():
    plan = Plan(sizes=SIZES)
    assert set(decoding.make_decoders({"softmax": None}, plan)) == {"softmax", "softmax-products"}
    assert set(layers.make_layers({"softmax": None}, plan)) == {"softmax"}
