"""Decoding in place is the op: outputs, states, forks, bounded drift, what is refused, compiled and exported."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compilers import needs_cpp_compiler

from echo_ska.algebra import RidgeFactor, SufficientStatistics, concatenate
from echo_ska.ops import RecurrentState, decoding, decoding_state, spectral_koopman_attention
from echo_ska.ops.decoding import DecodingState, advance, decode_step
from echo_ska.ops.readout import folded_readout, folded_readouts

BATCH, HEADS, RANK, HEAD_DIM = 2, 2, 5, 3
INTERVALS = [None, 1, 5, 64]
intervals = pytest.mark.parametrize("interval", INTERVALS, ids=lambda n: "exact" if n is None else f"refresh-{n}")


def make_tokens(time, *, batch=BATCH, rank=RANK, blend=True, weights=True, dtype=torch.float64, seed=0):
    """Inputs of the op by name, [B, T, H, ...]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(width):
        return torch.randn(batch, time, HEADS, width, generator=generator, dtype=torch.float64).to(dtype)

    def uniform():
        return torch.rand(batch, time, HEADS, generator=generator, dtype=torch.float64).to(dtype)

    tokens = {"query": normal(rank), "key": F.normalize(normal(rank), dim=-1), "value": normal(HEAD_DIM)}
    if weights:
        tokens["write_weight"] = uniform()
        tokens["write_weight"][:, ::4] = 0.0
    if blend:
        tokens["blend"] = uniform()
    return tokens


def make_settings(power=2, interval=None):
    generator = torch.Generator().manual_seed(9)
    ridge, gain, scale = 0.2 + torch.rand(3, HEADS, generator=generator, dtype=torch.float64)
    return {"ridge": ridge, "gain": gain, "scale": scale, "power": power, "refresh_interval": interval}


def cut(tokens, begin, end):
    return {name: tensor[:, begin:end] for name, tensor in tokens.items()}


def run(tokens, settings, state=None, backend="recurrent"):
    return spectral_koopman_attention(
        **tokens, **settings, initial_state=state, output_final_state=True, backend=backend
    )


def empty(interval, batch=BATCH, rank=RANK, dtype=torch.float64):
    statistics = SufficientStatistics.empty(batch, HEADS, rank, HEAD_DIM, dtype=dtype)
    return RecurrentState(statistics, None if interval is None else statistics, statistics.count)


def start(state, settings):
    keep = {name: settings[name] for name in ("power", "refresh_interval")}
    return DecodingState.of(state, settings["ridge"], **keep)


def decode(state, tokens, settings):
    """Every token of `tokens` by `decode_step`: outputs [B, T, H, P]."""
    time = tokens["key"].shape[1]
    steps = ({name: tensor[:, t] for name, tensor in tokens.items()} for t in range(time))
    return torch.stack([decode_step(state, **step, **settings) for step in steps], dim=1)


def assert_states_equal(found, expected, tolerance=1e-9):
    found, expected = found.tensors(), expected.tensors()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype, name
        assert torch.allclose(found[name].double(), tensor.double(), rtol=tolerance, atol=tolerance), name


@intervals
@pytest.mark.parametrize("power", [0, 1, 2, 3])
@pytest.mark.parametrize("blend", [False, True], ids=["pure", "blended"])
@pytest.mark.parametrize("weights", [False, True], ids=["all", "weighted"])
def test_decoding_is_the_definition_and_reaches_its_state(interval, power, blend, weights):
    tokens, settings = make_tokens(70, blend=blend, weights=weights), make_settings(power, interval)
    expected, last = run(tokens, settings)
    state = start(empty(interval), settings)
    found = decode(state, tokens, settings)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert_states_equal(state.to_recurrent(), last)


@intervals
@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
@pytest.mark.parametrize("prefix", [1, 63, 64, 65])
def test_decoding_goes_on_from_any_state_and_back(interval, backend, prefix):
    tokens, settings = make_tokens(130), make_settings(2, interval)
    expected, last = run(tokens, settings)
    _, before = run(cut(tokens, 0, prefix), settings, backend=backend)
    state = start(before, settings)
    found = decode(state, cut(tokens, prefix, 100), settings)
    assert torch.allclose(found, expected[:, prefix:100], rtol=1e-9, atol=1e-9)
    rest, final = run(cut(tokens, 100, 130), settings, state.to_recurrent(), backend=backend)
    assert torch.allclose(rest, expected[:, 100:], rtol=1e-9, atol=1e-9)
    assert_states_equal(final, last)


@intervals
def test_rows_at_different_positions_decode_together(interval):
    """Rows freeze and are re-inverted at their own positions."""
    tokens, settings = make_tokens(100), make_settings(2, interval)
    expected, _ = run(tokens, settings)
    lengths = [7, 63]
    states = [run(cut(tokens, 0, n), settings)[1].select_rows(torch.tensor([row])) for row, n in enumerate(lengths)]
    state = start(concatenate(states), settings)
    ahead = {
        name: torch.stack([tensor[row, n : n + 37] for row, n in enumerate(lengths)]) for name, tensor in tokens.items()
    }
    found = decode(state, ahead, settings)
    for row, n in enumerate(lengths):
        assert torch.allclose(found[row], expected[row, n : n + 37], rtol=1e-9, atol=1e-9)
    assert state.position.tolist() == [n + 37 for n in lengths]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)], ids=str)
def test_lower_precision_tokens_are_the_float64_function_of_their_values(dtype, tolerance):
    """Inputs are exact in the accumulator, so only the output is rounded (float32 gains and blends included)."""
    tokens, settings = make_tokens(70, rank=16, dtype=dtype), make_settings()
    expected, _ = run({name: tensor.double() for name, tensor in tokens.items()}, settings)
    found = decode(start(empty(None, rank=16), settings), tokens, settings)
    assert found.dtype is dtype
    assert float((found.double() - expected).abs().max()) <= tolerance * float(expected.abs().max())


@intervals
def test_the_sums_survive_the_round_trip_bit_for_bit(interval):
    settings = make_settings(2, interval)
    _, state = run(make_tokens(33), settings)
    back = start(state, settings).to_recurrent()
    for name, tensor in state.tensors().items():
        assert torch.equal(back.tensors()[name], tensor), name
    sources = {tensor.untyped_storage().data_ptr() for tensor in state.tensors().values()}
    assert not sources & {tensor.untyped_storage().data_ptr() for tensor in back.tensors().values()}


@pytest.mark.parametrize("fork", [copy.deepcopy, lambda s: s.clone(), lambda s: s.select_rows(torch.tensor([0, 1]))])
@intervals
def test_a_fork_goes_its_own_way(fork, interval):
    tokens, settings = make_tokens(40), make_settings(2, interval)
    state = start(empty(interval), settings)
    decode(state, cut(tokens, 0, 17), settings)
    other = fork(state)
    before = other.clone().tensors()
    expected = decode(state, cut(tokens, 17, 40), settings)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.tensors().items())
    assert torch.equal(decode(other, cut(tokens, 17, 40), settings), expected)


@intervals
@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
def test_the_memory_of_a_state_may_move_between_steps(native, interval, monkeypatch):
    if not native:
        monkeypatch.setattr(decoding, "can_step", lambda moments: False)
    tokens, settings = make_tokens(12), make_settings(2, interval)
    state, expected = (start(empty(interval), settings) for _ in range(2))
    before = decode(state, cut(tokens, 0, 7), settings)
    for tensor in state.tensors().values():
        tensor.data = tensor.clone()
    after = decode(state, cut(tokens, 7, 12), settings)
    assert torch.equal(torch.cat([before, after], dim=1), decode(expected, tokens, settings))
    assert_states_equal(state, expected, tolerance=0.0)


def test_the_inverse_follows_the_gram_matrix():
    tokens, settings = make_tokens(50, rank=16), make_settings()
    state = start(empty(None, rank=16), settings)
    decode(state, tokens, settings)
    gram = state.moments[:, :, :16] + settings["ridge"][:, None, None] * torch.eye(16, dtype=torch.float64)
    assert torch.allclose(state.inverse @ gram, torch.eye(16, dtype=torch.float64).expand_as(gram), atol=1e-11)


def drift(tokens, reinvert_every, monkeypatch):
    """How far the inverse is from that of the state's own sums, relative to its largest entry, at a small ridge."""
    monkeypatch.setattr(decoding_state, "REINVERT_EVERY", {torch.float64: reinvert_every})
    ridge = torch.tensor(1e-3, dtype=torch.float64)
    state = DecodingState.of(empty(None, batch=1, rank=8), ridge)
    decode(state, tokens, {"ridge": ridge, "power": 0})
    exact = RidgeFactor.of(state.moments[:, :, :8], ridge).solve(torch.eye(8, dtype=torch.float64))
    return float((state.inverse - exact).abs().max() / exact.abs().max())


def test_inverting_anew_keeps_the_inverse_at_the_sums(monkeypatch):
    """Two distinct keys in eight directions: what sums and updates round in the empty ones is divided by the ridge."""
    tokens = make_tokens(2500, batch=1, rank=8, weights=False, blend=False)
    which = torch.randint(0, 2, (2500,), generator=torch.Generator().manual_seed(1))
    tokens["key"] = tokens["key"][:, which]
    with_it, without = drift(tokens, 64, monkeypatch), drift(tokens, 10**9, monkeypatch)
    assert with_it < 1e-9
    assert without > 20 * with_it


def test_what_is_not_finite_is_named_when_the_inverse_is_computed_anew(monkeypatch):
    monkeypatch.setattr(decoding_state, "REINVERT_EVERY", {torch.float64: 4})
    tokens, settings = make_tokens(8), make_settings()
    tokens["value"][1, 2, 1, 0] = float("nan")
    state = start(empty(None), settings)
    decode(state, cut(tokens, 0, 4), settings)
    with pytest.raises(ArithmeticError, match="broken at batch row 1, head 1"):
        decode(state, cut(tokens, 4, 5), settings)


def test_an_inverse_that_has_lost_its_sign_is_named():
    settings = make_settings()
    state = start(empty(None), settings)
    state.inverse[1, 0, 2, 2] = -1.0
    with pytest.raises(ArithmeticError, match=r"broken at batch row 1, head 0 .* raise the ridge"):
        state.prepare(settings["ridge"])


def test_a_failed_factorisation_names_batch_row_and_head():
    statistics = empty(None).statistics
    statistics.gram[1, 1] = -torch.eye(RANK, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match=r"not positive definite .* batch row 1, head 1"):
        DecodingState.of(RecurrentState(statistics, None, statistics.count), 0.5)


def test_a_backward_pass_through_a_state_that_has_changed_since_is_refused():
    tokens, settings = make_tokens(1), make_settings()
    for field in ("moments", "inverse", "previous_key"):
        state = start(empty(None), settings)
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        loss = (weight * getattr(state, field)).sum()
        with torch.no_grad():
            decode(state, tokens, settings)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_state_of_inference_mode_is_changed_only_there():
    tokens, settings = make_tokens(2), make_settings()
    expected = decode(start(empty(None), settings), tokens, settings)
    with torch.inference_mode():
        state = start(empty(None), settings)
        first = decode(state, cut(tokens, 0, 1), settings)
    with torch.no_grad(), pytest.raises(RuntimeError, match="inference mode"):
        decode(state, cut(tokens, 1, 2), settings)
    with torch.no_grad():
        second = decode(state.clone(), cut(tokens, 1, 2), settings)
    assert torch.equal(torch.cat([first, second], dim=1), expected)


def test_a_gradient_is_refused():
    tokens, settings = make_tokens(1), make_settings()
    token = {name: tensor[:, 0] for name, tensor in tokens.items()}
    state = start(empty(None), settings)
    with pytest.raises(RuntimeError, match=r"call it under torch.no_grad\(\)"):
        decode_step(state, **{**token, "key": token["key"].clone().requires_grad_()}, **settings)
    with pytest.raises(RuntimeError, match="has no gradient"):
        decode_step(state, **token, **(settings | {"gain": settings["gain"].clone().requires_grad_()}))
    assert state.position.tolist() == [0, 0]
    with torch.no_grad():
        assert not decode_step(state, **{**token, "key": token["key"].requires_grad_()}, **settings).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.ones(2, 2, 4)}, r"query and key must be \[2, 2, 5\] and value \[2, 2, 3\]"),
        ({"value": torch.ones(1, 2, 3)}, r"got \[2, 2, 5\], \[2, 2, 5\] and \[1, 2, 3\]"),
        ({"blend": torch.ones(2, 1)}, r"write_weight and blend must be \[2, 2\]"),
        ({"refresh_interval": 64}, "made for refresh_interval None, not 64"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(change, message):
    tokens = {name: tensor[:, 0] for name, tensor in make_tokens(1).items()} | make_settings() | change
    with pytest.raises(ValueError, match=message):
        decode_step(start(empty(None), make_settings()), **tokens)


@pytest.mark.parametrize("name", ["query", "key", "value", "write_weight", "blend"])
def test_tokens_on_another_device_than_the_state_are_refused(name):
    settings = make_settings()
    tokens = {given: tensor[:, 0] for given, tensor in make_tokens(1).items()}
    tokens[name] = tokens[name].to("meta")
    with pytest.raises(ValueError, match=f"{name} is on meta and the state on cpu: move them to one device"):
        decode_step(start(empty(None), settings), **tokens, **settings)


@intervals
def test_the_default_device_does_not_matter(interval):
    tokens, settings = make_tokens(12), make_settings(2, interval)
    expected = decode(start(empty(interval), settings), tokens, settings)
    state = start(empty(interval), settings)
    with torch.device("meta"):
        found = decode(state, tokens, settings)
    assert torch.equal(found, expected)


def test_a_state_folded_for_another_power_is_refused():
    token = {name: tensor[:, 0] for name, tensor in make_tokens(1).items()}
    state = start(empty(5), make_settings(2, 5))
    with pytest.raises(ValueError, match="folded for power 2, not 3"):
        decode_step(state, **token, **make_settings(3, 5))


def test_a_state_made_for_another_ridge_is_refused():
    tokens, settings = make_tokens(2), make_settings()
    token, later = ({name: tensor[:, t] for name, tensor in tokens.items()} for t in range(2))
    state = start(empty(None), settings)
    other = settings["ridge"] * torch.tensor([1.0, 1.5])
    untouched = state.clone()
    with pytest.raises(ValueError, match=r"made for ridge .* at batch row 0, head 1, not .*: use the same"):
        decode_step(state, **token, **(settings | {"ridge": other}))
    assert_states_equal(state, untouched)
    decode_step(state, **token, **(settings | {"ridge": settings["ridge"].float()}))  # the same, rounded
    anew = DecodingState.of(state.to_recurrent(), other)
    decode_step(anew, **later, **(settings | {"ridge": other}))


def test_a_state_keeps_the_ridge_it_was_made_for_when_the_callers_changes_in_place():
    token, settings = {name: tensor[:1, 0] for name, tensor in make_tokens(1).items()}, make_settings()
    ridge = settings["ridge"] = torch.ones(2, dtype=torch.float64)
    state = DecodingState.of(empty(None).map(lambda tensor: tensor[:1]), ridge)
    ridge.mul_(2)
    assert state.ridge.tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="made for ridge"):
        decode_step(state, **token, **settings)


@pytest.mark.parametrize("power", [-1, 1.5, True])
def test_a_power_that_is_no_integer_from_0_on_is_refused(power):
    token = {name: tensor[:, 0] for name, tensor in make_tokens(1).items()}
    settings = make_settings() | {"power": power}
    with pytest.raises(ValueError, match="power must be an integer >= 0"):
        decode_step(start(empty(None), make_settings()), **token, **settings)
    with pytest.raises(ValueError, match="power must be an integer >= 0"):
        folded_readout(empty(None), ridge=1.0, power=power)
    with pytest.raises(ValueError, match="power must be an integer >= 0"):
        DecodingState.of(empty(4), 1.0, power=power, refresh_interval=4)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), torch.tensor([1.0, -0.5])])
def test_a_ridge_that_is_not_positive_is_refused(ridge):
    with pytest.raises(ValueError, match="ridge must be > 0"):
        DecodingState.of(empty(None), ridge)
    with pytest.raises(ValueError, match="ridge must be > 0"):
        folded_readout(empty(None), ridge=ridge, power=2)


@pytest.mark.parametrize(
    ("made", "used", "message"),
    [
        (None, {"refresh_interval": 5, "power": 2}, "made without a refresh_interval and is to be read with one"),
        (5, {}, "made with a refresh_interval and is to be read without one"),
        (5, {"refresh_interval": 5}, "give power"),
    ],
)
def test_a_state_of_another_reading_is_refused(made, used, message):
    with pytest.raises(ValueError, match=message):
        DecodingState.of(empty(made), 1.0, **used)


@pytest.mark.parametrize("interval", [3, 5, 20])
def test_a_state_frozen_at_another_interval_is_refused(interval):
    _, state = run(make_tokens(10), make_settings(2, 4))
    with pytest.raises(ValueError, match=f"frozen at another refresh_interval than {interval}: use the same"):
        DecodingState.of(state, 1.0, power=2, refresh_interval=interval)


@pytest.mark.parametrize(
    ("interval", "backend"),
    [pytest.param(None, "inductor", marks=needs_cpp_compiler), (None, "aot_eager"), (5, "aot_eager")],
)
def test_the_compiled_step_is_the_eager_one(interval, backend):
    tokens, settings = make_tokens(12), make_settings(2, interval)
    torch.compiler.reset()
    compiled = torch.compile(advance, fullgraph=True, backend=backend)
    eager_state, state = start(empty(interval), settings), start(empty(interval), settings)
    expected = decode(eager_state, tokens, settings)
    steering = {name: settings[name] for name in ("power", "gain", "scale")}
    for t in range(12):
        state.prepare(settings["ridge"])
        found = compiled(state, **{name: tensor[:, t] for name, tensor in tokens.items()}, **steering)
        assert torch.allclose(found, expected[:, t], rtol=1e-9, atol=1e-9)
    assert_states_equal(state.to_recurrent(), eager_state.to_recurrent())


class Step(torch.nn.Module):
    def forward(self, moments, inverse, ridge, first_key, previous_key, count, position, query, key, value):
        state = DecodingState(moments, inverse, ridge, first_key, previous_key, count, position)
        return advance(state, query, key, value, power=2)


def test_the_exported_step_changes_the_state_it_is_given():
    tokens, settings = make_tokens(6, weights=False, blend=False), {"ridge": 0.5, "power": 2}
    eager_state = DecodingState.of(empty(None), 0.5)
    state = eager_state.clone()
    one = [tokens[name][:, 0] for name in ("query", "key", "value")]
    exported = torch.export.export(Step(), (*state.clone().tensors().values(), *one)).module()
    for t in range(6):
        expected = decode_step(eager_state, *(tokens[name][:, t] for name in ("query", "key", "value")), **settings)
        found = exported(*state.tensors().values(), *(tokens[name][:, t] for name in ("query", "key", "value")))
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert_states_equal(state, eager_state)


@pytest.mark.parametrize("power", [0, 1, 2, 3])
@pytest.mark.parametrize("blend", [None, "per head", 0.3])
def test_a_folded_context_reads_as_the_op_does(power, blend):
    """A non-causal read of the prefix is what its folded readout gives, for any later query."""
    tokens, settings = make_tokens(40, blend=False), make_settings(power)
    del settings["refresh_interval"]
    _, state = run(tokens, settings)
    amount = torch.rand(HEADS, dtype=torch.float64) if blend == "per head" else blend
    if blend is not None:
        tokens["blend"] = torch.as_tensor(amount, dtype=torch.float64).expand(BATCH, 40, HEADS)
    expected, _ = run(tokens, settings | {"causal": False})
    for context in (state, state.statistics):
        readout = folded_readout(context, **settings, blend=amount)
        assert readout.shape == (BATCH, HEADS, HEAD_DIM, RANK)
        found = torch.einsum("bhpr,bthr->bthp", readout, tokens["query"])
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_two_readouts_serve_a_blend_that_changes_from_token_to_token():
    tokens, settings = make_tokens(40), make_settings(2)
    del settings["refresh_interval"]
    expected, state = run(tokens, settings | {"causal": False})
    plain, filtered = (torch.einsum("bhpr,bthr->bthp", r, tokens["query"]) for r in folded_readouts(state, **settings))
    assert torch.allclose(torch.lerp(plain, filtered, tokens["blend"][..., None]), expected, rtol=1e-9, atol=1e-9)


def test_a_folded_readout_has_gradients():
    tokens, settings = make_tokens(9, blend=False), make_settings(2)
    del settings["refresh_interval"]
    leaves = [tokens["key"], tokens["value"], settings["ridge"], settings["gain"]]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    expected, _ = run(tokens, settings | {"causal": False})
    readout = folded_readout(
        SufficientStatistics.from_tokens(tokens["key"], tokens["value"], tokens["write_weight"]), **settings
    )
    found = torch.einsum("bhpr,bthr->bthp", readout, tokens["query"])
    for ours, theirs in zip(
        torch.autograd.grad(found.sin().sum(), leaves), torch.autograd.grad(expected.sin().sum(), leaves), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-9)


def test_a_frozen_context_folds_to_what_its_next_token_reads():
    tokens, settings = make_tokens(12, blend=False), make_settings(2, 5)
    _, state = run(cut(tokens, 0, 11), settings)
    expected, _ = run(cut(tokens, 11, 12), settings, state)
    del settings["refresh_interval"]
    found = torch.einsum("bhpr,bthr->bthp", folded_readout(state, **settings), tokens["query"][:, 11:])
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from /proc")
def test_twenty_thousand_steps_take_no_more_memory():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    settings = make_settings(2, 64)
    token = {name: tensor[:, 0] for name, tensor in make_tokens(1, batch=1).items()}
    state = start(empty(64, batch=1), settings)
    for _ in range(200):
        decode_step(state, **token, **settings)
    before, size = resident(), state.nbytes
    for _ in range(20_000):
        decode_step(state, **token, **settings)
    assert resident() - before < 8e6
    assert state.nbytes == size
    assert state.position.tolist() == [20_200]
