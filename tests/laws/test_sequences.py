"""Laws about sequences: splitting, causality, packing, padding, masking, batch order."""

from __future__ import annotations

import pytest
import torch
from cases import CAUSAL_READINGS, IMPLEMENTATIONS, LENGTHS, READINGS, assert_same, make_case, outcome

from echo_ska.algebra import concatenate

SPLITS = [(1,), (64,), (1, 2, 3), (5, 40), (30, 31, 33, 100), (0, 7, 129)]
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
causal_readings = pytest.mark.parametrize("reading", CAUSAL_READINGS)


@every_implementation
@causal_readings
@pytest.mark.parametrize("cuts", SPLITS, ids=str)
def test_any_split_gives_the_same_outputs_and_state(implementation, reading, cuts):
    case = make_case(130, blend=True, **READINGS[reading])
    whole, last = case.run(backend="recurrent")
    outputs, state = [], None
    for begin, end in zip((0, *cuts), (*cuts, 130), strict=True):
        output, state = case.tokens(begin, end).run(initial_state=state, **IMPLEMENTATIONS[implementation])
        outputs.append(output)
    found = {"output": torch.cat(outputs, dim=1)} | state.tensors()
    assert_same(found, {"output": whole} | last.tensors(), 1e-9)


@causal_readings
def test_gradients_flow_through_a_split(reading):
    case = make_case(70, **READINGS[reading]).requires_grad()
    whole, _ = case.run(backend="recurrent")
    first, state = case.tokens(0, 33).run(backend="chunked", chunk_size=8)
    second, _ = case.tokens(33, 70).run(backend="chunked", chunk_size=8, initial_state=state)
    leaves = list(case.tensors.values())
    expected = torch.autograd.grad(whole.sin().sum(), leaves)
    found = torch.autograd.grad(torch.cat([first, second], dim=1).sin().sum(), leaves)
    assert_same(dict(enumerate(found)), dict(enumerate(expected)), 1e-9)


@every_implementation
@pytest.mark.parametrize("interval", [1, 5, 64])
def test_what_is_frozen_in_a_state_is_read_and_gets_the_gradient(implementation, interval):
    """Also where it is not what it should be, the sums at the last multiple of the interval."""
    _, state = make_case(64 if interval == 64 else 10, refresh_interval=interval).run(backend="recurrent")
    case = make_case(9, refresh_interval=interval, seed=1)

    def found(**settings):
        leaves = {name: tensor.detach().clone() for name, tensor in state.tensors().items()}
        floating = {name: tensor.requires_grad_() for name, tensor in leaves.items() if tensor.is_floating_point()}

        def run():
            tensors = iter(leaves.values())
            return case.run(initial_state=state.map(lambda _: next(tensors)), **settings)[0]

        output = run()
        with torch.no_grad():
            outputs = {"output": output, "output without gradients": run()}
        gradients = torch.autograd.grad(output.sin().sum(), list(floating.values()), materialize_grads=True)
        gradients = dict(zip(floating, gradients, strict=True))
        for name in ("statistics.gram", "frozen_statistics.gram"):  # a Gram matrix has no other direction to move in
            gradients[name] = gradients[name] + gradients[name].mT
        return outputs | gradients

    assert_same(found(**IMPLEMENTATIONS[implementation]), found(backend="recurrent"), 1e-9)
    state.frozen_statistics.value_moment.mul_(2)
    assert_same(found(**IMPLEMENTATIONS[implementation]), found(backend="recurrent"), 1e-9)


@every_implementation
@causal_readings
@pytest.mark.parametrize("time", [t for t in LENGTHS if t > 1])
def test_a_later_token_never_changes_an_earlier_output(implementation, reading, time):
    case = make_case(time, blend=True, **READINGS[reading])
    before, _ = case.run(**IMPLEMENTATIONS[implementation])
    half = time // 2
    for name, tensor in case.tensors.items():
        if tensor.dim() > 1:
            tensor[:, half:] = torch.rand_like(tensor[:, half:]) if name in ("write_weight", "blend") else 100.0
    after, _ = case.run(**IMPLEMENTATIONS[implementation])
    if implementation == "recurrent":
        assert torch.equal(before[:, :half], after[:, :half])
    else:
        assert_same({"output": after[:, :half]}, {"output": before[:, :half]}, 1e-12)
    reads_nothing = reading == "refresh-64" and time <= 64  # the first chunk reads zeros, whatever comes
    assert torch.equal(before[:, half:], after[:, half:]) == reads_nothing


@every_implementation
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "continued"])
def test_packing_equals_separate_sequences(implementation, reading, with_state):
    lengths = [1, 7, 0, 66, 5]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    case = make_case(sum(lengths), batch=1, blend=True, **READINGS[reading]).requires_grad()
    state = None
    if with_state:  # sequences that stand at different positions
        warm_up = make_case(20, batch=1, seed=3, **READINGS[reading])
        state = concatenate([warm_up.tokens(0, n).run()[1] for n in (3, 4, 5, 11, 20)])
    packed, final = case.run(cu_seqlens=bounds, initial_state=state, **IMPLEMENTATIONS[implementation])
    outputs, finals = [], []
    for n, (begin, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        row = None if state is None else state.map(lambda t, n=n: t[n : n + 1])
        output, last = case.tokens(begin, end).run(initial_state=row, backend="recurrent")
        outputs.append(output)
        finals.append(last)
    expected = torch.cat(outputs, dim=1)
    assert_same({"output": packed} | final.tensors(), {"output": expected} | concatenate(finals).tensors(), 1e-9)
    leaves = list(case.tensors.values())
    found = torch.autograd.grad(packed.sin().sum(), leaves)
    separate = torch.autograd.grad(expected.sin().sum(), leaves)
    assert_same(dict(enumerate(found)), dict(enumerate(separate)), 1e-9)


@every_implementation
@pytest.mark.parametrize("reading", READINGS)
def test_packed_bfloat16_stays_near_float64(implementation, reading):
    """Gradients are rounded to the inputs' dtype; what is carried on comes from weighted keys that are not."""
    bounds = torch.tensor([0, 1, 8, 8, 74, 79])
    case = make_case(79, batch=1, blend=True, **READINGS[reading]).to(torch.bfloat16)
    found = outcome(case, cu_seqlens=bounds, **IMPLEMENTATIONS[implementation])
    expected = outcome(case.to(torch.float64), cu_seqlens=bounds, backend="recurrent")
    for name, value in expected.items():
        tolerance = 1e-5 if name.startswith("state.") else 2 * torch.finfo(torch.bfloat16).eps
        assert_same({name: found[name]}, {name: value}, tolerance)


@every_implementation
@causal_readings
def test_rows_at_different_positions_continue_together(implementation, reading):
    warm_up = make_case(20, batch=1, seed=3, **READINGS[reading])
    state = concatenate([warm_up.tokens(0, n).run()[1] for n in (3, 8)])
    case = make_case(23, **READINGS[reading])
    together, final = case.run(initial_state=state, **IMPLEMENTATIONS[implementation])
    for n in range(2):
        row = state.map(lambda t, n=n: t[n : n + 1])
        alone, last = case.rows(n).run(initial_state=row, backend="recurrent")
        found = {"output": together[n : n + 1]} | final.map(lambda t, n=n: t[n : n + 1]).tensors()
        assert_same(found, {"output": alone} | last.tensors(), 1e-9)


@every_implementation
@pytest.mark.parametrize("reading", READINGS)
def test_zero_weight_is_absence_at_the_start(implementation, reading):
    if reading.startswith("refresh"):
        pytest.skip("chunks are counted from the first token, masked or not")
    case = make_case(40, **READINGS[reading])
    case.tensors["write_weight"][:, :9] = 0.0
    masked, _ = case.run(**IMPLEMENTATIONS[implementation])
    absent, _ = case.tokens(9, 40).run(**IMPLEMENTATIONS[implementation])
    assert_same({"output": masked[:, 9:]}, {"output": absent}, 1e-12)


@every_implementation
def test_zero_weight_inside_breaks_the_lag_pair(implementation):
    case = make_case(12)
    case.tensors["write_weight"][:, 5] = 0.0
    _, state = case.run(**IMPLEMENTATIONS[implementation])
    _, before = case.tokens(0, 5).run()
    _, after = case.tokens(6, 12).run()
    unjoined = before.statistics.lag_moment + after.statistics.lag_moment
    assert_same({"lag": state.statistics.lag_moment}, {"lag": unjoined}, 1e-12)
    absent = before.statistics + after.statistics
    assert not torch.allclose(absent.lag_moment, unjoined)


def test_prefix_mask_is_the_statistics_of_the_prefix():
    """Non-causal with weight 0 outside a prefix: every token reads the prefix alone."""
    case = make_case(20, causal=False)
    case.tensors["write_weight"][:, 12:] = 0.0
    whole, _ = case.run()
    prefix, _ = case.tokens(0, 12).run()
    assert_same({"output": whole[:, :12]}, {"output": prefix}, 1e-12)


@every_implementation
@pytest.mark.parametrize("reading", READINGS)
def test_batch_order_changes_nothing(implementation, reading):
    case = make_case(30, batch=3, **READINGS[reading])
    forward = outcome(case, **IMPLEMENTATIONS[implementation])["output"]
    shuffled, _ = case.rows(2, 0, 1).run(**IMPLEMENTATIONS[implementation])
    assert_same({"output": shuffled}, {"output": forward[[2, 0, 1]]}, 1e-12)


@every_implementation
@causal_readings
def test_state_size_does_not_depend_on_length(implementation, reading):
    sizes = {make_case(time, **READINGS[reading]).run(**IMPLEMENTATIONS[implementation])[1].nbytes for time in LENGTHS}
    assert len(sizes) == 1


@every_implementation
def test_no_token_is_allowed(implementation):
    case = make_case(3)
    _, state = case.run()
    output, same = case.tokens(3, 3).run(initial_state=state, **IMPLEMENTATIONS[implementation])
    assert output.shape == (2, 0, 2, 3)
    assert_same(same.tensors(), state.tensors(), 0.0)
