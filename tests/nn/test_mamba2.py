"""Mamba-2 against its definition token by token, against transformers, across calls and in packed batches."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from echo_ska.nn.mamba2 import Mamba2, Mamba2State, part_state, state_space_scan
from echo_ska.training.optimizer import parameter_groups

LENGTHS = [70, 1, 0, 16, 3, 33]  # of packed sequences, for chunks of 16
SIZES = {"state_size": 8, "head_dim": 8, "chunk_size": 16}


def make_mixer(hidden_size=12, **changes):
    torch.manual_seed(1)
    mixer = Mamba2(hidden_size, **(SIZES | changes))
    # Steps a hundred times longer than at the start, or the state would hardly matter in a short test.
    torch.nn.init.uniform_(mixer.dt_bias, -3, 1)
    torch.nn.init.uniform_(mixer.D, 0.5, 1.5)
    torch.nn.init.uniform_(mixer.norm.weight, 0.5, 1.5)
    torch.nn.init.uniform_(mixer.A_log, -2, 1)
    return mixer.double()


def tokens(*shape, hidden_size=12):
    torch.manual_seed(2)
    return torch.randn(*shape, hidden_size, dtype=torch.float64, requires_grad=True)


def make_state(mixer, rows):
    torch.manual_seed(3)
    return mixer.init_state(rows).map(lambda tensor: torch.randn_like(tensor).requires_grad_())


def definition(mixer, hidden_states, state):
    """One sequence [T, d], one token after the other, one head after the other."""
    inner, size, width = mixer.inner_size, mixer.state_size, mixer.head_dim
    inputs, ssm = list(state.convolution[0]), list(state.ssm[0])
    outputs = []
    for token in hidden_states:
        projected = mixer.in_proj.weight @ token
        z, xBC, dt = projected[:inner], projected[inner : -mixer.heads], projected[-mixer.heads :]
        inputs = [*inputs, xBC][-mixer.convolution.kernel_size :]
        filtered = mixer.convolution.bias
        for tap, past in enumerate(reversed(inputs)):
            filtered = filtered + mixer.convolution.weight[:, tap] * past
        active = filtered / (1 + torch.exp(-filtered))
        B, C = active[inner : inner + size], active[inner + size :]
        read = []
        for head in range(mixer.heads):
            x = active[head * width : (head + 1) * width]
            step = torch.log1p(torch.exp(dt[head] + mixer.dt_bias[head]))
            decay = torch.exp(-step * torch.exp(mixer.A_log[head]))
            ssm[head] = decay * ssm[head] + step * torch.outer(x, B)
            read.append(ssm[head] @ C + mixer.D[head] * x)
        gated = torch.cat(read) * z / (1 + torch.exp(-z))
        normed = gated / torch.sqrt((gated**2).mean() + mixer.norm.eps) * mixer.norm.weight
        outputs.append(mixer.out_proj.weight @ normed)
    kept = inputs[len(inputs) - mixer.convolution.kernel_size + 1 :]
    return torch.stack(outputs), Mamba2State(torch.stack(kept)[None], torch.stack(ssm)[None])


def everything(y, state):
    """One number that depends on every output and on the state, so that all their gradients are compared."""
    return y.sin().sum() + sum(tensor.sin().sum() for tensor in state.tensors().values())


def assert_same(found, expected, **tolerance):
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    torch.testing.assert_close(found[1].tensors(), expected[1].tensors(), **tolerance)


@pytest.mark.parametrize("length", [1, 7, 63, 65, 130])
def test_equals_its_definition_with_gradients(length):
    mixer, x = make_mixer(chunk_size=None), tokens(1, length)
    state = make_state(mixer, 1)
    found = mixer(x, state, output_state=True)
    expected = definition(mixer, x[0], state)
    assert_same((found[0][0], found[1]), expected)
    leaves = [x, *mixer.parameters(), *state.tensors().values()]
    torch.testing.assert_close(
        torch.autograd.grad(everything(*found), leaves), torch.autograd.grad(everything(*expected), leaves)
    )


def test_no_state_is_the_initial_state():
    mixer, x = make_mixer(), tokens(2, 40)
    torch.testing.assert_close(mixer(x)[0], mixer(x, mixer.init_state(2))[0])
    assert mixer(x)[1] is None


@pytest.mark.parametrize("head_dim", [4, 24])
@pytest.mark.parametrize("chunk_size", [1, 5, 64, 1000])
def test_the_chunk_size_changes_nothing(head_dim, chunk_size):
    x = tokens(2, 70)
    sixteen = make_mixer(head_dim=head_dim)(x, output_state=True)
    assert_same(make_mixer(head_dim=head_dim, chunk_size=chunk_size)(x, output_state=True), sixteen)


def transformers_mixer(ours, hidden_size):
    config = Mamba2Config(
        hidden_size=hidden_size,
        num_heads=ours.heads,
        head_dim=ours.head_dim,
        state_size=ours.state_size,
        n_groups=1,
        expand=2,
        layer_norm_epsilon=ours.norm.eps,
        num_hidden_layers=1,
    )
    theirs = Mamba2Mixer(config, layer_idx=0)
    names = {"convolution.weight": "conv1d.weight", "convolution.bias": "conv1d.bias"}
    weights = {names.get(name, name): value for name, value in ours.state_dict().items()}
    weights["conv1d.weight"] = weights["conv1d.weight"].flip(1)[:, None]
    theirs.load_state_dict(weights)
    return theirs


@pytest.mark.parametrize("length", [1, 50, 300])
def test_equals_transformers_with_gradients(length):
    # Theirs computes in float32 whatever the inputs, so both run in float32: 2e-5 of the largest entry.
    ours = make_mixer(chunk_size=None).float()
    theirs = transformers_mixer(ours, 12)
    x = tokens(2, length).detach().float().requires_grad_()
    found, expected = ours(x)[0], theirs(x)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    found.sin().sum().backward()
    of_x, x.grad = x.grad, None
    expected.sin().sum().backward()
    pairs = {
        "x": (of_x, x.grad),
        "convolution": (ours.convolution.weight.grad.flip(1)[:, None], theirs.conv1d.weight.grad),
    }
    pairs |= {name: (getattr(ours, name).grad, getattr(theirs, name).grad) for name in ("A_log", "D", "dt_bias")}
    for name in ("in_proj", "norm", "out_proj"):
        pairs[name] = (getattr(ours, name).weight.grad, getattr(theirs, name).weight.grad)
    for name, (mine, other) in pairs.items():
        assert (mine - other).abs().max() < 2e-5 * other.abs().max() + 1e-7, name


@pytest.mark.parametrize("cuts", [(1,), (2,), (17, 50), (1, 2, 3, 5, 8), (0, 16, 16, 48), tuple(range(1, 70))], ids=str)
def test_any_split_gives_the_same_outputs_and_state(cuts):
    mixer, x = make_mixer(), tokens(2, 70)
    whole = mixer(x, output_state=True)
    outputs, state = [], None
    for begin, end in zip((0, *cuts), (*cuts, 70), strict=True):
        before = state.clone() if state is not None else None
        y, after = mixer(x[:, begin:end], state, output_state=True)
        if state is not None:  # the state given is never changed in place
            assert all(
                torch.equal(old, new)
                for old, new in zip(before.tensors().values(), state.tensors().values(), strict=True)
            )
        state = after
        outputs.append(y)
    parts = torch.cat(outputs, dim=1), state
    assert_same(parts, whole)
    leaves = [x, *mixer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(everything(*parts), leaves), torch.autograd.grad(everything(*whole), leaves)
    )


@pytest.mark.parametrize("with_state", [False, True])
def test_packed_sequences_equal_separate_ones_with_gradients(with_state):
    mixer, x = make_mixer(), tokens(1, sum(LENGTHS))
    state = make_state(mixer, len(LENGTHS)) if with_state else None
    boundaries = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    found = mixer(x, state, cu_seqlens=boundaries, output_state=True)
    outputs, ends = [], []
    for row, part in enumerate(x.split(LENGTHS, dim=1)):
        own = state.select_rows(torch.tensor([row])) if with_state else None
        y, end = mixer(part, own, output_state=True)
        outputs.append(y)
        ends.append(end)
    last = Mamba2State(torch.cat([end.convolution for end in ends]), torch.cat([end.ssm for end in ends]))
    expected = torch.cat(outputs, dim=1), last
    assert_same(found, expected)
    leaves = [x, *mixer.parameters(), *(state.tensors().values() if with_state else [])]
    torch.testing.assert_close(
        torch.autograd.grad(everything(*found), leaves), torch.autograd.grad(everything(*expected), leaves)
    )
    torch.testing.assert_close(mixer(x, state, cu_seqlens=boundaries)[0], expected[0])


@pytest.mark.parametrize("place", [0, 15, 16, 40, 69])
def test_a_later_token_never_changes_an_earlier_output(place):
    mixer, x = make_mixer(), tokens(1, 70).detach()
    changed = x.clone()
    changed[:, place] += 100
    before, after = mixer(x)[0], mixer(changed)[0]
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.equal(before[:, place], after[:, place])


def test_state_bytes_are_those_of_the_live_state():
    for mixer in (make_mixer(), make_mixer().float(), make_mixer().bfloat16()):
        dtype = mixer.in_proj.weight.dtype
        for length in (1, 40):
            _, state = mixer(tokens(1, length).to(dtype), output_state=True)
            assert state.nbytes == mixer.state_bytes(length)
            initial = mixer.init_state(1).tensors()
            assert {k: (v.shape, v.dtype) for k, v in initial.items()} == {
                k: (v.shape, v.dtype) for k, v in state.tensors().items()
            }


def test_only_the_projections_follow_autocast():
    mixer, x = make_mixer().float(), tokens(2, 40).detach().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer(x, output_state=True)
    assert (y - mixer(x)[0]).abs().max() < 0.05 * y.abs().max()

    def project_in_bfloat16(module, inputs, output):
        return F.linear(inputs[0].bfloat16(), module.weight.bfloat16())

    mixer.in_proj.register_forward_hook(project_in_bfloat16)
    _, expected = mixer(x, output_state=True)
    assert state.ssm.dtype == torch.float32
    assert torch.equal(state.ssm, expected.ssm)


def scan_inputs(length, rate, dtype=torch.float64):
    torch.manual_seed(4)
    x, dt = torch.randn(1, length, 2, 4), torch.rand(1, length, 2)
    B, C = torch.randn(1, length, 3), torch.randn(1, length, 3)
    return [value.to(dtype) for value in (x, dt, -torch.tensor([rate, rate / 7]), B, C)]


def test_violent_decays_neither_overflow_nor_lose_their_gradient():
    inputs = [value.float().requires_grad_() for value in scan_inputs(200, 1e6)]
    y, state = state_space_scan(*inputs, output_state=True)
    x, dt, _, B, C = inputs
    # Everything is forgotten at once, so what is read is what was just written.
    torch.testing.assert_close(y, x * dt[..., None] * (B * C).sum(-1)[..., None, None])
    for gradient in torch.autograd.grad(y.sum() + state.sum(), inputs):
        assert gradient.isfinite().all()


def test_precision_does_not_depend_on_the_length():
    # A quarter of a million tokens; the two heads remember 20,000 and 140,000 of them.
    errors, state, exact = [], None, None
    x, dt, A, B, C = scan_inputs(4096, 1e-4)
    for _ in range(64):
        x, dt, B, C = (value.roll(1, dims=1) for value in (x, dt, B, C))
        single = [value.float() for value in (x, dt, A, B, C)]
        y, state = state_space_scan(*single, state, output_state=True)
        expected, exact = state_space_scan(x, dt, A, B, C, exact, output_state=True)
        errors.append(((y - expected).norm() / expected.norm()).item())
    assert state.dtype == torch.float32
    assert max(errors) < 3e-6


def test_published_start():
    torch.manual_seed(0)
    mixer = Mamba2(1024, head_dim=4)
    rates, steps = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
    assert 1 <= rates.min() < 2
    assert 15 < rates.max() <= 16.001
    assert 0.999e-3 <= steps.min() < 1.2e-3
    assert 0.08 < steps.max() <= 0.1001
    assert steps.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.2)
    assert torch.equal(mixer.D, torch.ones(512))


def test_scan_parameters_are_not_decayed():
    groups = parameter_groups(make_mixer(), 1e-3, 0.1)
    kept = {name for group in groups if group["weight_decay"] == 0 for name in group["parameter_names"]}
    assert {"A_log", "D", "dt_bias", "norm.weight"} <= kept


def test_refuses_a_head_dim_that_does_not_divide():
    with pytest.raises(ValueError, match="set head_dim to a divisor of 24, such as 8"):
        Mamba2(12, head_dim=16)


def part_inputs(length, dtype=torch.float64):
    torch.manual_seed(4)
    x, dt = torch.randn(2, length, 3, 4), torch.rand(2, length, 3) / 2
    B, C = torch.randn(2, length, 5), torch.randn(2, length, 5)
    return [tensor.to(dtype) for tensor in (x, dt, torch.tensor([-0.01, -0.3, -4.0]), B, C)]


@pytest.mark.parametrize("cut", [0, 1, 20, 33])
def test_what_two_parts_do_to_the_state_adds_up_to_the_scan(cut):
    x, dt, A, B, C = part_inputs(33)
    before = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    parts = [part_state(x[:, piece], dt[:, piece], A, B[:, piece]) for piece in (slice(None, cut), slice(cut, None))]
    _, after = state_space_scan(x, dt, A, B, C, before, output_state=True)
    assert torch.allclose((parts[0] + parts[1]).after(before), after, atol=1e-12)
    assert torch.allclose(parts[1].after(parts[0].after(before)), after, atol=1e-12)


def test_a_long_part_is_summed_up_without_loss_in_float32():
    fine = part_state(*part_inputs(20_000)[:4]).ssm
    coarse = part_state(*part_inputs(20_000, torch.float32)[:4]).ssm
    assert (coarse - fine).abs().max() < 2e-6 * fine.abs().max()
