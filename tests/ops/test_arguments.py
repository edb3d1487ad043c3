"""Bad input to the op: one clear sentence each."""

from __future__ import annotations

import pytest
import torch

from echo_ska.ops import DecodingState, decode_step, set_value_checks, spectral_koopman_attention
from echo_ska.ops.native.build import why_unavailable

WIDTHS = {"query": 4, "key": 4, "value": 5}


def call(**changes):
    arguments = {
        "query": torch.randn(2, 9, 3, 4),
        "key": torch.randn(2, 9, 3, 4),
        "value": torch.randn(2, 9, 3, 5),
        "ridge": 1.0,
    }
    return spectral_koopman_attention(**(arguments | changes))


def with_value(tensor, place, value):
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


BAD = {
    "query of 3 dimensions": ({"query": torch.randn(2, 9, 4)}, r"query must be \[batch, time, heads, rank\]"),
    "key of another rank": ({"key": torch.randn(2, 9, 3, 5)}, r"key must have the shape of query, \[2, 9, 3, 4\]"),
    "value of another length": ({"value": torch.randn(2, 8, 3, 5)}, r"value must be \[2, 9, 3, head_dim\]"),
    "weights of another shape": ({"write_weight": torch.ones(2, 9)}, r"write_weight must be \[2, 9, 3\]"),
    "integer keys": ({"key": torch.ones(2, 9, 3, 4, dtype=torch.int64)}, "key must be a floating-point tensor"),
    "ridge of another number of heads": ({"ridge": torch.ones(2)}, r"ridge must be a number or .* \[3\], got \[2\]"),
    "ridge of zero": ({"ridge": 0.0}, "ridge must be > 0, got 0"),
    "a ridge that float32 cannot honour": ({"ridge": 1e-4}, "ridge must be at least 0.0005 for torch.float32 inputs"),
    "a negative ridge in one head": ({"ridge": torch.tensor([1.0, -2.0, 1.0])}, "ridge must be > 0, got -2"),
    "a ridge that is not a number": ({"ridge": float("nan")}, "ridge holds nan first at head 0"),
    "negative power": ({"power": -1}, "power must be an integer >= 0, got -1"),
    "fractional power": ({"power": 1.5}, "power must be an integer >= 0, got 1.5"),
    "weights above 1": ({"write_weight": torch.full((2, 9, 3), 1.5)}, r"write_weight must lie in \[0, 1\]"),
    "weights below 0": ({"write_weight": torch.full((2, 9, 3), -0.1)}, r"write_weight must lie in \[0, 1\]"),
    "blend above 1": ({"blend": torch.full((2, 9, 3), 2.0)}, r"blend must lie in \[0, 1\]"),
    "NaN in the values": (
        {"value": with_value(torch.randn(2, 9, 3, 5), (1, 7, 2, 3), float("nan"))},
        r"value holds nan first at batch 1, time 7, head 2, channel 3 \(1 of 270 not finite\)",
    ),
    "infinity in the keys": (
        {"key": with_value(torch.randn(2, 9, 3, 4), (0, 2, 1, 0), float("inf"))},
        "key holds inf first at batch 0, time 2, head 1, channel 0",
    ),
    "refresh without causality": ({"refresh_interval": 4, "causal": False}, "refresh_interval is for causal reading"),
    "refresh of zero": ({"refresh_interval": 0}, "refresh_interval must be an integer >= 1 or None"),
    "unknown backend": ({"backend": "cuda"}, "backend must be one of auto, .*, native, triton, got 'cuda'"),
    "chunk size of zero": ({"chunk_size": 0}, "chunk_size must be >= 1"),
    "packing of two rows": ({"cu_seqlens": torch.tensor([0, 9])}, "cu_seqlens needs a packed batch of 1 row, got 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_sentence(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(**changes)


def unit_keys():
    return torch.nn.functional.normalize(torch.randn(2, 9, 3, 4), dim=-1)


def test_the_ridge_has_to_fit_the_longest_stored_key_of_its_head():
    """What decides the rounding of float32 tokens is the ridge relative to the squared norm of keys."""
    key = unit_keys()
    key[1, 5, 2] *= 7
    message = (
        r"ridge must be at least 0.0005 times the squared norm of the keys for torch.float32 inputs, got 0.01 and keys "
        r"of norm up to 7 in head 2: normalise the keys, raise the ridge to 0.0\d+, or pass float64"
    )
    with pytest.raises(ValueError, match=message):
        call(key=key, ridge=0.01)
    call(key=key, ridge=torch.tensor([0.01, 0.01, 0.025]))
    call(key=key.double(), query=key.double(), value=torch.randn(2, 9, 3, 5).double(), ridge=0.01)
    call(key=key, ridge=0.01, write_weight=with_value(torch.ones(2, 9, 3), (1, 5, 2), 0.01))


def test_keys_rounded_after_normalising_are_unit_ones():
    torch.manual_seed(0)
    key = unit_keys().bfloat16()
    assert key.float().norm(dim=-1).max() > 1
    call(query=key, key=key, value=torch.randn(2, 9, 3, 5).bfloat16(), ridge=5e-4)


@pytest.mark.parametrize("backend", ["native", "chunked"])
@pytest.mark.parametrize(
    ("length", "ridge", "settings", "tolerance"),
    [
        (1, 5e-4, {}, 1e-6),
        (1, 5e-4, {"refresh_interval": 8}, 1e-6),
        (7, 5e-4 * 49 * 1.01, {}, 1e-6),
        (1, 5.1e-3, {}, 2e-2),
    ],
    ids=["small", "small, short windows", "small beside the keys", "just large enough for float32 tokens"],
)
def test_gradients_of_float32_calls_are_right_at_every_allowed_ridge(backend, length, ridge, settings, tolerance):
    """Few distinct keys, where float32 tokens would get the gradient of keys wrong by a third at the smallest ridge."""
    if backend == "native" and why_unavailable() is not None:
        pytest.skip("needs a C compiler")
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        distinct = length * torch.nn.functional.normalize(torch.randn(16, 48), dim=-1)
        key = distinct[torch.randint(16, (256,))][None, :, None]
        inputs = [t.to(dtype).requires_grad_() for t in (torch.randn(1, 256, 1, 48), key, torch.randn(1, 256, 1, 16))]
        output, _ = spectral_koopman_attention(*inputs, ridge=ridge, backend=backend, **settings)
        assert output.dtype == dtype
        found.append([t.double() for t in torch.autograd.grad(output.sin().sum(), inputs)])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < tolerance


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 5], "must run from 0 to 9, the packed length, got 0 to 5"),
        ([1, 9], "must run from 0 to 9"),
        ([0, 6, 4, 9], "must not decrease"),
        ([9], "at least 2 boundaries"),
    ],
)
def test_boundaries_that_do_not_fit(bounds, message):
    packed = {"query": torch.randn(1, 9, 3, 4), "key": torch.randn(1, 9, 3, 4), "value": torch.randn(1, 9, 3, 5)}
    with pytest.raises(ValueError, match=message):
        call(**packed, cu_seqlens=torch.tensor(bounds))


def test_a_state_of_another_model_is_refused():
    _, state = call(output_final_state=True)
    with pytest.raises(ValueError, match="initial_state is of another model or batch"):
        call(value=torch.randn(2, 9, 3, 6), initial_state=state)
    with pytest.raises(ValueError, match="made without a refresh_interval and is read with one"):
        call(initial_state=state, refresh_interval=4)
    with pytest.raises(ValueError, match="initial_state must be a RecurrentState, got dict"):
        call(initial_state={})


@pytest.mark.parametrize("frozen", [False, True], ids=["sums", "frozen"])
@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("gram", lambda t: t[..., :3], r"gram must be \[2, 3, 4, 4\], got \[2, 3, 4, 3\]"),
        ("lag_moment", lambda t: t[:1], r"lag_moment must be \[2, 3, 4, 4\], got \[1, 3, 4, 4\]"),
        ("value_moment", lambda t: t[0], r"value_moment must be .*, got \[3, 5, 4\]"),
        ("first_key", lambda t: t[..., :3], r"first_key must be \[2, 3, 4\], got \[2, 3, 3\]"),
        ("previous_key", lambda t: t.to("meta"), "previous_key is on meta and the rest of the state on cpu"),
        ("previous_key", lambda t: t.long(), "previous_key must be a floating-point tensor, got torch.int64"),
        ("count", lambda t: t.int(), "count must be torch.int64, got torch.int32"),
        ("count", lambda t: t[:1], r"count must be \[2\], got \[1\]"),
        ("position", lambda t: t[:1], r"position must be \[2\], got \[1\]"),
        ("position", lambda t: 9, "position must be a torch tensor, got int"),
    ],
)
def test_a_state_whose_fields_do_not_fit_each_other_is_refused(field, change, message, frozen):
    _, state = call(output_final_state=True, refresh_interval=4)
    owner = state if field == "position" else state.frozen_statistics if frozen else state.statistics
    setattr(owner, field, change(getattr(owner, field)))
    with pytest.raises(ValueError, match=message):
        call(initial_state=state, refresh_interval=4)
    with pytest.raises(ValueError, match=message):
        DecodingState.of(state, 1.0, power=2, refresh_interval=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("interval", [None, 3, 4])
def test_a_state_of_lower_precision_is_read_alike_by_every_route(dtype, interval):
    settings = {"ridge": 1.0, "refresh_interval": interval, "output_final_state": True}
    _, state = call(**settings)
    lowered = state.map(lambda t: t.to(dtype) if t.is_floating_point() else t)
    raised = lowered.map(lambda t: t.double() if t.is_floating_point() else t)
    for tensor in lowered.tensors().values():
        tensor.requires_grad_(tensor.is_floating_point())
    tokens = {name: torch.randn(2, 5, 3, width, dtype=torch.float64) for name, width in WIDTHS.items()}
    expected, last = call(**tokens, **settings, initial_state=raised, backend="recurrent")
    leaves = [lowered.statistics.gram, (lowered.frozen_statistics or lowered.statistics).value_moment]
    gradients = []
    for backend in ("recurrent", "chunked", "auto"):
        output, final = call(**tokens, **settings, initial_state=lowered, backend=backend)
        torch.testing.assert_close(output, expected)
        for name, tensor in final.tensors().items():
            torch.testing.assert_close(tensor, last.tensors()[name])
        gradients.append(torch.autograd.grad(output.sum() + final.statistics.gram.square().sum(), leaves))
        assert [gradient.dtype for gradient in gradients[-1]] == [dtype, dtype]
        torch.testing.assert_close(gradients[-1][1], gradients[0][1])
    decoding = DecodingState.of(lowered, 1.0, power=2, refresh_interval=interval)
    with torch.no_grad():
        steps = [
            decode_step(decoding, **{name: t[:, i] for name, t in tokens.items()}, ridge=1.0, refresh_interval=interval)
            for i in range(5)
        ]
    torch.testing.assert_close(torch.stack(steps, dim=1), expected)


def test_large_finite_values_pass_the_cheap_check():
    """Their float32 sum overflows; the exact search finds nothing wrong."""
    output, _ = call(value=torch.full((2, 9, 3, 5), 3e38, dtype=torch.float64))
    assert output.isfinite().all()


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
@pytest.mark.parametrize("reading", [{}, {"refresh_interval": 2}, {"causal": False}], ids=str)
def test_a_failed_factorisation_names_the_batch_row_and_head_of_the_call(backend, reading):
    """Also where the route factors one matrix a chunk."""
    key = with_value(torch.randn(3, 9, 3, 4), (1, 4, 2, 0), float("nan"))
    inputs = {"query": torch.randn(3, 9, 3, 4), "key": key, "value": torch.randn(3, 9, 3, 5)}
    set_value_checks(False)
    try:
        with pytest.raises(ArithmeticError, match=r"not positive definite in \S+ at batch row 1, head 2"):
            call(**inputs, **reading, backend=backend, chunk_size=4)
    finally:
        set_value_checks(True)


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
def test_a_failed_factorisation_names_the_packed_sequence(backend):
    key = with_value(torch.randn(1, 12, 3, 4), (0, 9, 1, 0), float("nan"))
    inputs = {"query": torch.randn(1, 12, 3, 4), "key": key, "value": torch.randn(1, 12, 3, 5)}
    set_value_checks(False)
    try:
        with pytest.raises(ArithmeticError, match="at batch row 2, head 1"):
            call(**inputs, cu_seqlens=torch.tensor([0, 4, 8, 12]), backend=backend)
    finally:
        set_value_checks(True)


def test_the_value_checks_can_be_switched_off():
    assert set_value_checks(False) is True
    try:
        output, _ = call(value=torch.full((2, 9, 3, 5), float("nan")))
        assert output.isnan().all()
    finally:
        set_value_checks(True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": [[1.0]]}, "query must be a torch tensor, got list"),
        ({"key": None}, "key must be a torch tensor, got NoneType"),
        ({"write_weight": 0.5}, "write_weight must be a torch tensor or None, got float"),
        ({"ridge": None}, "ridge must be a number or a tensor, got None"),
        ({"ridge": True}, "ridge must be a number or a tensor, got True"),
        ({"ridge": torch.tensor(1j)}, "ridge must be real, got torch.complex64"),
    ],
)
def test_arguments_of_another_type(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_boundaries_must_be_an_integer_tensor():
    packed = {"query": torch.randn(1, 9, 3, 4), "key": torch.randn(1, 9, 3, 4), "value": torch.randn(1, 9, 3, 5)}
    with pytest.raises(ValueError, match="cu_seqlens must be a 1-D integer tensor, got list"):
        call(**packed, cu_seqlens=[0, 9])
    with pytest.raises(ValueError, match="at least 2 boundaries"):
        call(**packed, cu_seqlens=torch.tensor([False, True]))


def test_a_state_frozen_at_another_interval_is_refused():
    _, state = call(refresh_interval=4, output_final_state=True)
    call(refresh_interval=4, initial_state=state)
    with pytest.raises(ValueError, match="frozen at another refresh_interval than 3: use the same"):
        call(refresh_interval=3, initial_state=state)


@pytest.mark.parametrize("backend", ["recurrent", "chunked", "auto"])
@pytest.mark.parametrize("interval", [None, 4])
def test_the_default_device_does_not_matter(backend, interval):
    tokens = {name: torch.randn(1, 9, 3, 4, requires_grad=True) for name in ("query", "key", "value")}
    bounds = torch.tensor([0, 7, 9])

    def outputs_and_gradient():
        output, state = call(
            **tokens,
            refresh_interval=interval,
            cu_seqlens=bounds,
            backend=backend,
            output_final_state=True,
        )
        return output, *torch.autograd.grad(output.sum() + state.statistics.gram.sum(), tokens["key"])

    expected = outputs_and_gradient()
    with torch.device("meta"):
        found = outputs_and_gradient()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_batch_of_no_rows_gives_none():
    empty = {"query": torch.randn(0, 9, 3, 4), "key": torch.randn(0, 9, 3, 4), "value": torch.randn(0, 9, 3, 5)}
    output, state = call(**empty, output_final_state=True)
    assert output.shape == (0, 9, 3, 5)
    assert state.statistics.gram.shape == (0, 3, 4, 4)


def test_auto_says_once_what_it_chose(caplog):
    from echo_ska.ops.attention import _say_once

    _say_once.cache_clear()
    with caplog.at_level("INFO", logger="echo_ska.ops.attention"):
        call()
        call()
    chosen = "native" if why_unavailable() is None else "chunked"
    assert [record.message for record in caplog.records] == [
        f'spectral_koopman_attention: backend "auto" is "{chosen}" for several tokens'
    ]
