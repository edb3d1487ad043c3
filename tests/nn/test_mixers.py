"""What every mixer promises (`SequenceMixer`), over one table of mixers."""

from __future__ import annotations

import itertools

import pytest
import torch

from echo_ska.algebra import concatenate
from echo_ska.nn import Mamba2, SoftmaxAttention, SpectralKoopmanAttention

MIXERS = {
    "ska": lambda: SpectralKoopmanAttention(32, num_heads=2, rank=8),
    "ska-power-0": lambda: SpectralKoopmanAttention(32, num_heads=2, rank=8, power=0),
    "ska-refresh": lambda: SpectralKoopmanAttention(32, num_heads=2, rank=8, refresh_interval=8),
    "ska-plain": lambda: SpectralKoopmanAttention(
        32, num_heads=2, rank=8, conv_kernel=None, write_gate=False, output_norm=False, blended=False
    ),
    "mamba2": lambda: Mamba2(32, state_size=8, head_dim=16),
    "attention": lambda: SoftmaxAttention(32, num_heads=2),
    "attention-plain": lambda: SoftmaxAttention(32, num_heads=2, conv_kernel=None),
}


@pytest.fixture(params=MIXERS)
def mixer(request):
    torch.manual_seed(0)
    return MIXERS[request.param]().double()


def row(state, n):
    return state.select_rows(torch.tensor([n]))


@pytest.mark.parametrize("cuts", [(1,), (2, 3), (7, 30, 31), (45,)], ids=str)
def test_any_split_equals_the_whole(mixer, cuts):
    hidden = torch.randn(2, 50, 32, dtype=torch.float64)
    whole, last = mixer(hidden, output_state=True)
    outputs, state = [], None
    for begin, end in zip((0, *cuts), (*cuts, 50), strict=True):
        output, state = mixer(hidden[:, begin:end], state, output_state=True)
        outputs.append(output)
    assert torch.allclose(torch.cat(outputs, dim=1), whole, atol=1e-9)
    for name, tensor in last.tensors().items():
        assert torch.allclose(state.tensors()[name].double(), tensor.double(), atol=1e-9), name


def test_step_by_step_equals_the_whole(mixer):
    hidden = torch.randn(2, 12, 32, dtype=torch.float64)
    state = mixer.init_state(2)
    outputs = []
    for t in range(12):
        output, state = mixer(hidden[:, t : t + 1], state, output_state=True)
        outputs.append(output)
    assert torch.allclose(torch.cat(outputs, dim=1), mixer(hidden)[0], atol=1e-9)


def test_a_later_token_changes_no_earlier_output(mixer):
    hidden = torch.randn(2, 40, 32, dtype=torch.float64)
    before, _ = mixer(hidden)
    hidden[:, 25:] += 3.0
    after, _ = mixer(hidden)
    assert torch.allclose(before[:, :25], after[:, :25], atol=1e-12)
    assert not torch.allclose(before[:, 25:], after[:, 25:], atol=1e-3)


@pytest.mark.parametrize("continued", [False, True], ids=["fresh", "continued"])
def test_packing_equals_separate_sequences(mixer, continued):
    hidden = torch.randn(1, 60, 32, dtype=torch.float64, requires_grad=True)
    bounds = [0, 3, 40, 41, 60]
    state = None
    if continued:
        warm_up = torch.randn(1, 9, 32, dtype=torch.float64)
        state = concatenate([mixer(warm_up[:, :n], output_state=True)[1] for n in (5, 5, 5, 5)])
    packed, final = mixer(hidden, state, cu_seqlens=torch.tensor(bounds), output_state=True)
    outputs = []
    for n, (begin, end) in enumerate(itertools.pairwise(bounds)):
        own = None if state is None else row(state, n)
        output, last = mixer(hidden[:, begin:end], own, output_state=True)
        outputs.append(output)
        if "key" not in final.tensors():  # a key-value cache of several rows is padded
            for name, tensor in last.tensors().items():
                assert torch.allclose(row(final, n).tensors()[name].double(), tensor.double(), atol=1e-9), name
    separate = torch.cat(outputs, dim=1)
    assert torch.allclose(packed, separate, atol=1e-9)
    found = torch.autograd.grad(packed.sin().sum(), hidden)[0]
    assert torch.allclose(found, torch.autograd.grad(separate.sin().sum(), hidden)[0], atol=1e-9)


def test_rows_of_unequal_length_continue_together(mixer):
    """What left-padded generation does: sequences read packed, then decoded one token a row."""
    hidden = torch.randn(1, 20, 32, dtype=torch.float64)
    _, state = mixer(hidden, cu_seqlens=torch.tensor([0, 6, 20]), output_state=True)
    step = torch.randn(2, 1, 32, dtype=torch.float64)
    for _ in range(3):
        together, after = mixer(step, state, output_state=True)
        for n, (begin, end) in enumerate([(0, 6), (6, 20)]):
            alone_state = mixer(hidden[:, begin:end], output_state=True)[1]
            alone, _ = mixer(step[n : n + 1], alone_state)
            assert torch.allclose(together[n], alone[0], atol=1e-9)
        state = mixer(hidden, cu_seqlens=torch.tensor([0, 6, 20]), output_state=True)[1]
    assert after is not None


def test_a_state_is_never_changed_in_place(mixer):
    hidden = torch.randn(2, 9, 32, dtype=torch.float64)
    _, state = mixer(hidden, output_state=True)
    before = state.clone().tensors()
    mixer(hidden, state, output_state=True)
    mixer(hidden[:, :1], state, output_state=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


@pytest.mark.parametrize("length", [1, 5, 64])
def test_state_bytes_are_those_of_a_live_state(mixer, length):
    mixer = mixer.float()
    _, state = mixer(torch.randn(1, length, 32), output_state=True)
    assert mixer.state_bytes(length) == state.nbytes


def test_half_precision_runs_and_returns_its_dtype(mixer):
    mixer = mixer.to(torch.bfloat16)
    output, state = mixer(torch.randn(2, 20, 32, dtype=torch.bfloat16), output_state=True)
    assert output.dtype is torch.bfloat16
    assert output.isfinite().all()
    mixer(torch.randn(2, 1, 32, dtype=torch.bfloat16), state)


def test_autocast_runs(mixer):
    mixer = mixer.float()
    hidden = torch.randn(2, 20, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = mixer(hidden)
    assert torch.allclose(output.float(), mixer(hidden)[0], atol=0.1)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 5], "must run from 0 to 9"),
        ([2, 5, 9], "must run from 0 to 9"),
        ([0, 6, 3, 9], "must not decrease"),
        ([9], "at least 2 boundaries"),
    ],
)
def test_boundaries_that_do_not_fit_are_refused(mixer, bounds, message):
    with pytest.raises(ValueError, match=message):
        mixer(torch.randn(1, 9, 32, dtype=torch.float64), cu_seqlens=torch.tensor(bounds))


def test_a_state_of_another_layer_or_batch_is_refused(mixer):
    hidden = torch.randn(2, 5, 32, dtype=torch.float64)
    _, state = mixer(hidden, output_state=True)
    with pytest.raises(ValueError, match=r"state is of another layer or batch: its convolution is \[2, "):
        mixer(hidden[:1], state)
    with pytest.raises(ValueError, match=r"state must be a \w+State, got dict"):
        mixer(hidden, {})
    if isinstance(mixer, SpectralKoopmanAttention):
        other = SpectralKoopmanAttention(32, num_heads=4, rank=4).double()
        _, foreign = other(hidden, output_state=True)
        with pytest.raises(ValueError, match="state is of another layer"):
            mixer(hidden, foreign)
