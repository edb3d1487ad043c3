"""The short convolution against its definition, across calls and in packed batches."""

from __future__ import annotations

import pytest
import torch

from echo_ska.nn.convolution import ShortConvolution

CHANNELS, KERNEL = 6, 4
LENGTHS = [5, 1, 0, 2, 9, 3]  # of packed sequences: empty, and shorter than the kernel, among them


def make_convolution(**arguments):
    torch.manual_seed(1)
    return ShortConvolution(CHANNELS, KERNEL, bias=True, delay=None, **arguments).double()


def tokens(*shape):
    return torch.randn(*shape, CHANNELS, dtype=torch.float64, requires_grad=True)


def definition(convolution, x, state=None):
    """y[t] = bias + sum_i weight[:, i] x[t - i], token by token."""
    past = x.new_zeros(x.shape[0], KERNEL - 1, CHANNELS) if state is None else state
    extended = torch.cat([past, x], dim=1)
    outputs = []
    for t in range(x.shape[1]):
        y = convolution.bias
        for tap in range(KERNEL):
            y = y + convolution.weight[:, tap] * extended[:, KERNEL - 1 + t - tap]
        outputs.append(y)
    return torch.stack(outputs, dim=1), extended[:, x.shape[1] :]


def gradients(y, *leaves):
    return torch.autograd.grad(y.sin().sum(), leaves)


def packed(lengths=LENGTHS):
    return torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 11])
@pytest.mark.parametrize("with_state", [False, True])
def test_equals_its_definition_with_gradients(length, with_state):
    convolution, x = make_convolution(), tokens(2, length)
    state = tokens(2, KERNEL - 1) if with_state else None
    y, tail = convolution(x, state, output_state=True)
    expected, expected_tail = definition(convolution, x, state)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(tail, expected_tail)
    leaves = [x, *convolution.parameters(), *([state] if with_state else [])]
    torch.testing.assert_close(gradients(y, *leaves), gradients(expected, *leaves))


def test_taps_count_backwards_from_the_current_token():
    convolution, x = make_convolution(), tokens(2, 9)
    theirs = torch.nn.Conv1d(CHANNELS, CHANNELS, KERNEL, groups=CHANNELS, padding=KERNEL - 1).double()
    theirs.load_state_dict({"weight": convolution.weight.flip(1)[:, None], "bias": convolution.bias})
    torch.testing.assert_close(convolution(x)[0], theirs(x.mT)[..., :9].mT)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_starts_as_a_delay(delay):
    x = torch.randn(2, 7, CHANNELS)
    y, _ = ShortConvolution(CHANNELS, KERNEL, bias=True, delay=delay)(x)
    assert torch.equal(y[:, delay:], x[:, : 7 - delay])
    assert not y[:, :delay].any()


def test_channels_may_start_with_delays_of_their_own():
    delays = [0, 1, 2, 3, 0, 1]
    x = torch.randn(1, 7, CHANNELS)
    y, _ = ShortConvolution(CHANNELS, KERNEL, delay=delays)(x)
    for channel, delay in enumerate(delays):
        assert torch.equal(y[0, delay:, channel], x[0, : 7 - delay, channel])


def test_starts_uniform_without_a_delay():
    weight = ShortConvolution(1000, KERNEL, delay=None).weight
    assert weight.abs().max() <= 0.5
    assert weight.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("delay", [-1, KERNEL, [0, 1]])
def test_refuses_a_delay_that_does_not_fit(delay):
    with pytest.raises(ValueError, match="delay must be"):
        ShortConvolution(CHANNELS, KERNEL, delay=delay)


@pytest.mark.parametrize("cuts", [(1,), (2,), (5,), (1, 2, 3, 4), (0, 3, 3, 10), (12,)], ids=str)
def test_any_split_gives_the_same_outputs_and_state(cuts):
    convolution, x = make_convolution(), tokens(2, 13)
    whole, last = convolution(x, output_state=True)
    outputs, state = [], None
    for begin, end in zip((0, *cuts), (*cuts, 13), strict=True):
        y, state = convolution(x[:, begin:end], state, output_state=True)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole)
    assert torch.equal(state, last)


@pytest.mark.parametrize("with_state", [False, True])
def test_packed_sequences_equal_separate_ones_with_gradients(with_state):
    convolution, x = make_convolution(), tokens(1, sum(LENGTHS))
    state = tokens(len(LENGTHS), KERNEL - 1) if with_state else None
    y, tail = convolution(x, state, cu_seqlens=packed().int(), output_state=True)
    outputs, tails = [], []
    for row, part in enumerate(x.split(LENGTHS, dim=1)):
        output, last = convolution(part, state[row : row + 1] if with_state else None, output_state=True)
        outputs.append(output)
        tails.append(last)
    expected, expected_tail = torch.cat(outputs, dim=1), torch.cat(tails)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(tail, expected_tail)
    leaves = [x, *convolution.parameters(), *([state] if with_state else [])]
    found = gradients(torch.cat([y.flatten(), tail.flatten()]), *leaves)
    torch.testing.assert_close(found, gradients(torch.cat([expected.flatten(), expected_tail.flatten()]), *leaves))


def test_packed_sequences_need_one_row():
    with pytest.raises(ValueError, match="B = 1"):
        make_convolution()(tokens(2, 4), cu_seqlens=torch.tensor([0, 4]))


def test_computes_in_float32_whatever_autocast_says():
    convolution, x = make_convolution().float(), torch.randn(2, 9, CHANNELS)
    expected, _ = convolution(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = convolution(x)
    assert torch.equal(found, expected)
    rounded, tail = convolution.bfloat16()(x.bfloat16(), output_state=True)
    assert rounded.dtype == tail.dtype == torch.bfloat16


def test_no_state_unless_asked():
    assert make_convolution()(tokens(2, 4))[1] is None


@pytest.mark.parametrize("kernel_size", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_stepping_equals_the_whole_and_ends_in_its_state(kernel_size, bias):
    torch.manual_seed(0)
    convolution = ShortConvolution(6, kernel_size, bias=bias, delay=None).double()
    x = torch.randn(3, 11, 6, dtype=torch.float64)
    whole, last = convolution(x, output_state=True)
    state = torch.zeros(3, kernel_size - 1, 6, dtype=torch.float64)
    with torch.no_grad():
        found = torch.stack([convolution.step(x[:, t], state) for t in range(11)], dim=1)
    assert torch.allclose(found, whole, atol=1e-12)
    assert torch.equal(state, last)
