"""What every mixer promises (`SequenceMixer`), over one table of mixers."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from echo_ska.nn import Mamba2, SoftmaxAttention, SpectralKoopmanAttention
from echo_ska.nn.peers import (
    RWKV7,
    BasedAttention,
    DeltaNet,
    GatedDeltaNet,
    GatedLinearAttention,
    LinearAttention,
    Mamba3,
    MesaNet,
    SlidingAttention,
)
from echo_ska.nn.peers.mamba3 import mamba3_as_published

PLAIN = {"conv_kernel": None, "write_gate": False, "output_norm": False}

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
    "attention-unordered": lambda: SoftmaxAttention(32, num_heads=2, conv_kernel=None, rope_theta=None),
    "sliding": lambda: SlidingAttention(32, num_heads=2, window=8),
    "sliding-wide": lambda: SlidingAttention(32, num_heads=2, window=40, conv_kernel=None),
    "mamba3": lambda: Mamba3(32, state_size=8, head_dim=16, chunk_size=16),
    "mamba3-paper": lambda: mamba3_as_published(32, state_size=8, head_dim=16),
    "mesa": lambda: MesaNet(32, num_heads=2, rank=8),
    "mesa-plain": lambda: MesaNet(32, num_heads=2, rank=8, decay=False, chunk_size=7, **PLAIN),
    "based": lambda: BasedAttention(32, num_heads=2, rank=4),
    "based-plain": lambda: BasedAttention(32, num_heads=2, rank=4, chunk_size=16, **PLAIN),
    "linear": lambda: LinearAttention(32, num_heads=2, rank=8),
    "linear-elu": lambda: LinearAttention(32, num_heads=2, rank=8, feature_map="elu+1", normalised=True, chunk_size=7),
    "linear-plain": lambda: LinearAttention(32, num_heads=2, rank=8, unit_keys=False, **PLAIN),
    "delta": lambda: DeltaNet(32, num_heads=2, rank=8, chunk_size=16),
    "delta-plain": lambda: DeltaNet(32, num_heads=2, rank=8, **PLAIN),
    "gated-delta": lambda: GatedDeltaNet(32, num_heads=2, rank=8, chunk_size=16),
    "gated-delta-plain": lambda: GatedDeltaNet(32, num_heads=2, rank=8, head_dim=12, chunk_size=7, **PLAIN),
    "gla": lambda: GatedLinearAttention(32, num_heads=2, rank=8, chunk_size=16),
    "gla-plain": lambda: GatedLinearAttention(32, num_heads=2, rank=8, memory_spans=None, unit_keys=False, **PLAIN),
    "rwkv7": lambda: RWKV7(32, num_heads=2, rank=8, chunk_size=16),
    "rwkv7-plain": lambda: RWKV7(32, num_heads=2, rank=8, head_dim=12, unit_keys=False, **PLAIN),
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


class Wrapped(torch.nn.Module):
    """As PEFT puts a layer of its own around one that it tunes."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def forward(self, vectors):
        return 2 * self.base_layer(vectors)


def test_a_norm_that_a_tool_has_wrapped_is_called(mixer):
    hidden = torch.randn(2, 9, 32, dtype=torch.float64)
    wrapped = copy.deepcopy(mixer)
    for name, layer in mixer.named_children():
        if isinstance(layer, torch.nn.RMSNorm):
            layer.weight.data.mul_(2)
            setattr(wrapped, name, Wrapped(getattr(wrapped, name)))
    expected, state = mixer(hidden[:, :8], output_state=True)
    found, other = wrapped(hidden[:, :8], output_state=True)
    assert torch.allclose(found, expected, atol=1e-12)
    token = mixer.step(hidden[:, 8:], state)[0]
    assert torch.allclose(wrapped.step(hidden[:, 8:], other)[0], token, atol=1e-12)


def test_a_later_token_changes_no_earlier_output(mixer):
    hidden = torch.randn(2, 40, 32, dtype=torch.float64)
    before, _ = mixer(hidden)
    hidden[:, 25:] += 3.0
    after, _ = mixer(hidden)
    assert torch.allclose(before[:, :25], after[:, :25], atol=1e-12)
    assert not torch.allclose(before[:, 25:], after[:, 25:], atol=1e-3)


@pytest.mark.parametrize("lengths", [(3, 37, 1, 19), (0, 2, 70, 1, 0, 9, 2)], ids=str)
@pytest.mark.parametrize("continued", [False, True], ids=["fresh", "continued"])
def test_packing_equals_separate_sequences(mixer, continued, lengths):
    hidden = torch.randn(1, sum(lengths), 32, dtype=torch.float64, requires_grad=True)
    bounds = [0, *itertools.accumulate(lengths)]
    state = None
    if continued:
        warm_up = torch.randn(1, 9, 32, dtype=torch.float64)
        _, state = mixer(warm_up[:, :5], output_state=True)
        state = state.detach().map(lambda tensor: tensor.repeat_interleave(len(lengths), 0)).map(grown)
    packed, final = mixer(hidden, state, cu_seqlens=torch.tensor(bounds), output_state=True)
    outputs, ends = [], []
    for n, (begin, end) in enumerate(itertools.pairwise(bounds)):
        own = None if state is None else row(state, n)
        output, last = mixer(hidden[:, begin:end], own, output_state=True)
        outputs.append(output)
        ends.append(last)
        for name, tensor in last.tensors().items():
            found = row(final, n).tensors()[name]
            if found.shape != tensor.shape:  # a key-value cache of several rows is padded
                assert not found[:, tensor.shape[1] :].any(), name
                found = found[:, : tensor.shape[1]]
            assert torch.allclose(found.double(), tensor.double(), atol=1e-9), name
    separate = torch.cat(outputs, dim=1)
    assert torch.allclose(packed, separate, atol=1e-9)
    leaves = [hidden, *mixer.parameters(), *leaves_of(state)]
    gradients = [
        torch.autograd.grad(output.sin().sum() + sum(map(sines, states)), leaves, allow_unused=True)
        for output, states in ((packed, [final]), (separate, ends))
    ]
    for found, expected in zip(*gradients, strict=True):
        assert (found is None) == (expected is None)
        assert found is None or torch.allclose(found, expected, atol=1e-9)


def leaves_of(state):
    return [] if state is None else [tensor for tensor in state.tensors().values() if tensor.requires_grad]


def grown(tensor):
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


def sines(state):
    return sum(tensor.sin().sum() for tensor in state.tensors().values() if tensor.requires_grad)


class Elements(TorchDispatchMode):
    """Counts the numbers that are computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        self.count += sum(tensor.numel() for tensor in tree_leaves(results) if isinstance(tensor, torch.Tensor))
        return results


def elements(mixer, length, **packing):
    """Numbers computed for so many tokens, forward and backward, with softmax attention's scores among them."""
    hidden = torch.randn(1, length, 32, dtype=torch.float64, requires_grad=True)
    with Elements() as computed, sdpa_kernel(SDPBackend.MATH):
        torch.autograd.grad(mixer(hidden, **packing)[0].sum(), hidden)
    return computed.count


def test_packing_a_long_sequence_with_short_ones_costs_what_they_cost_alone(mixer):
    packed = elements(mixer, 512, cu_seqlens=torch.tensor([0, 256, *range(260, 513, 4)]))
    alone = elements(mixer, 256) + 64 * elements(mixer, 4)
    assert packed < 1.5 * alone


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


def test_stepping_is_the_forward_and_reaches_its_state(mixer):
    hidden = torch.randn(2, 70, 32, dtype=torch.float64)
    whole, last = mixer(hidden, output_state=True)
    state = mixer.init_state(2)
    outputs = [mixer.step(hidden[:, t : t + 1], state) for t in range(70)]
    assert torch.allclose(torch.cat(outputs, dim=1), whole, atol=1e-9)
    found = state.compact().tensors()
    for name, tensor in last.tensors().items():
        assert found[name].dtype is tensor.dtype, name
        assert torch.allclose(found[name].double(), tensor.double(), atol=1e-9), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stepping_is_the_forward_in_lower_precision(mixer, dtype):
    """Steps and forward round at other places: a few of the dtype's epsilons of the largest output."""
    mixer = mixer.to(dtype)
    hidden = torch.randn(2, 40, 32, dtype=dtype)
    whole, state = mixer(hidden[:, :20], output_state=True)
    whole, _ = mixer(hidden)
    outputs = torch.cat([mixer.step(hidden[:, t : t + 1], state) for t in range(20, 40)], dim=1)
    assert outputs.dtype is dtype
    limit = 20 * torch.finfo(dtype).eps * float(whole.detach().abs().max())
    assert float((outputs - whole[:, 20:]).abs().max()) <= limit


def test_forward_and_step_take_each_others_states(mixer):
    hidden = torch.randn(2, 60, 32, dtype=torch.float64)
    whole, last = mixer(hidden, output_state=True)
    outputs, state = [], None
    for begin, end in itertools.pairwise([0, 7, 8, 9, 10, 33, 34, 35, 59, 60]):
        if end - begin == 1:
            outputs.append(mixer.step(hidden[:, begin:end], state))
        else:
            output, state = mixer(hidden[:, begin:end], state, output_state=True)
            outputs.append(output)
    assert torch.allclose(torch.cat(outputs, dim=1), whole, atol=1e-9)
    found = state.compact().tensors()
    for name, tensor in last.tensors().items():
        assert torch.allclose(found[name].double(), tensor.double(), atol=1e-9), name


def test_rows_of_unequal_length_step_together(mixer):
    hidden = torch.randn(1, 20, 32, dtype=torch.float64)
    _, state = mixer(hidden, cu_seqlens=torch.tensor([0, 6, 20]), output_state=True)
    alone = [mixer(hidden[:, begin:end], output_state=True)[1] for begin, end in ((0, 6), (6, 20))]
    for token in torch.randn(20, 2, 1, 32, dtype=torch.float64):
        together = mixer.step(token, state)
        for n in range(2):
            assert torch.allclose(together[n], mixer.step(token[n : n + 1], alone[n])[0], atol=1e-9)


@pytest.mark.parametrize("fork", [copy.deepcopy, lambda s: s.clone(), lambda s: s.select_rows(torch.tensor([0, 1]))])
def test_a_fork_of_a_state_goes_its_own_way(mixer, fork):
    hidden = torch.randn(2, 40, 32, dtype=torch.float64)
    state = mixer.init_state(2)
    for t in range(20):
        mixer.step(hidden[:, t : t + 1], state)
    other = fork(state)
    before = other.clone().tensors()
    expected = [mixer.step(hidden[:, t : t + 1], state) for t in range(20, 40)]
    assert all(torch.equal(before[name], tensor) for name, tensor in other.tensors().items())
    assert all(torch.equal(mixer.step(hidden[:, t + 20 : t + 21], other), y) for t, y in enumerate(expected))


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_forward_returns_a_state_of_its_own_memory(mixer, tokens):
    """So a step on the new state cannot change the old one, not even after an empty call."""
    _, state = mixer(torch.randn(2, 9, 32, dtype=torch.float64), output_state=True)
    before = state.clone().tensors()
    _, new = mixer(torch.randn(2, tokens, 32, dtype=torch.float64), state, output_state=True)
    mixer.step(torch.randn(2, 1, 32, dtype=torch.float64), new)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


def test_a_state_keeps_no_more_memory_than_it_says(mixer):
    """A view of a long call's tensors would keep all of them."""
    _, state = mixer(torch.randn(2, 300, 32, dtype=torch.float64), output_state=True)
    for name, tensor in state.tensors().items():
        held, said = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
        assert held == said, name


def test_a_step_has_no_gradient_and_needs_no_graph(mixer):
    state = mixer.init_state(2)
    output = mixer.step(torch.randn(2, 1, 32, dtype=torch.float64, requires_grad=True), state)
    assert not output.requires_grad
    assert not any(tensor.requires_grad for tensor in state.tensors().values())


def test_stepping_makes_room_for_an_eighth_more(mixer):
    """Nothing but a key-value cache grows, and it no further than by a fixed share."""
    _, state = mixer(torch.randn(1, 200, 32, dtype=torch.float64), output_state=True)
    sizes = set()
    for _ in range(100):
        mixer.step(torch.randn(1, 1, 32, dtype=torch.float64), state)
        sizes.add(state.nbytes)
    assert state.compact().nbytes == mixer.state_bytes(300)
    if isinstance(mixer, SoftmaxAttention):
        assert len(sizes) < 6, "the cache was copied for almost every token"
        assert state.nbytes < 1.2 * mixer.state_bytes(300)
    else:
        assert len(sizes) == 1


@pytest.mark.parametrize("rope_theta", [10_000.0, None])
def test_attention_without_positions_does_not_know_the_order(rope_theta):
    torch.manual_seed(0)
    mixer = SoftmaxAttention(32, num_heads=2, conv_kernel=None, rope_theta=rope_theta).double()
    hidden = torch.randn(1, 9, 32, dtype=torch.float64)
    turned = torch.cat([hidden[:, :8].flip(1), hidden[:, 8:]], dim=1)
    same = torch.allclose(mixer(hidden)[0][:, 8], mixer(turned)[0][:, 8], atol=1e-12)
    assert same == (rope_theta is None)


@pytest.mark.parametrize("shape", [(2, 2, 32), (2, 32), (3, 1, 32)])
def test_a_step_that_does_not_fit_is_refused(mixer, shape):
    state = mixer.init_state(2)
    for _ in range(2):  # the second time, SKA's state is in its decoding form
        with pytest.raises(ValueError, match=r"one token a row, \[rows, 1, d\]|state is of another layer or batch"):
            mixer.step(torch.randn(*shape, dtype=torch.float64), state)
        mixer.step(torch.randn(2, 1, 32, dtype=torch.float64), state)


def test_tokens_of_another_width_are_refused_with_both_widths(mixer):
    said = (
        r"must be \[batch, time, 32\], as wide as the layer's hidden_size, got \[2, {}, 16\]: build .* hidden_size=16"
    )
    with pytest.raises(ValueError, match=said.format(5)):
        mixer(torch.randn(2, 5, 16, dtype=torch.float64))
    state = mixer.init_state(2)
    for _ in range(2):  # the second time, SKA's state is in its decoding form
        with pytest.raises(ValueError, match=said.format(1)):
            mixer.step(torch.randn(2, 1, 16, dtype=torch.float64), state)
        mixer.step(torch.randn(2, 1, 32, dtype=torch.float64), state)


class Step(torch.nn.Module):
    """A mixer's `advance` as an exporter wants it: tensors in, tensors out."""

    def __init__(self, mixer, state):
        super().__init__()
        self.mixer, self.structure = mixer, state

    def forward(self, hidden_states, tensors):
        values = iter(tensors)
        return self.mixer.advance(hidden_states, self.structure.map(lambda _: next(values)))


def test_an_exported_step_is_the_step(mixer):
    hidden = torch.randn(2, 12, 32, dtype=torch.float64)
    _, state = mixer(hidden[:, :5], output_state=True)
    state_of_eager = state.clone()
    mixer.prepare(state)
    structure = state.clone()
    module = Step(mixer, structure).eval()
    with torch.no_grad():
        exported = torch.export.export(module, (hidden[:, :1], list(state.clone().tensors().values()))).module()
        for t in range(5, 12):
            expected = mixer.step(hidden[:, t : t + 1], state_of_eager)
            if t > 5:
                mixer.prepare(state)
            found = exported(hidden[:, t : t + 1], list(state.tensors().values()))
            assert torch.allclose(found, expected, atol=1e-9)


def test_a_compiled_step_is_the_step(mixer):
    hidden = torch.randn(2, 12, 32, dtype=torch.float64)
    _, state = mixer(hidden[:, :5], output_state=True)
    state_of_eager = state.clone()
    torch.compiler.reset()
    compiled = torch.compile(mixer.advance, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for t in range(5, 12):
            expected = mixer.step(hidden[:, t : t + 1], state_of_eager)
            mixer.prepare(state)
            assert torch.allclose(compiled(hidden[:, t : t + 1], state), expected, atol=1e-9)


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


@pytest.mark.parametrize("name", MIXERS)
def test_a_call_of_no_tokens_or_no_rows_goes_on_from_a_state(name):
    mixer = MIXERS[name]()
    hidden = torch.randn(2, 5, 32)
    _, state = mixer(hidden[:, :4], output_state=True)
    mixed, state = mixer(hidden[:, 4:4], state, output_state=True)
    assert mixed.shape == (2, 0, 32)
    torch.testing.assert_close(mixer(hidden[:, 4:], state)[0], mixer(hidden)[0][:, 4:], rtol=1e-4, atol=1e-5)
    _, state = mixer(hidden[:0], output_state=True)
    assert mixer(hidden[:0], state)[0].shape == (0, 5, 32)


@pytest.mark.parametrize("name", ["attention", "attention-plain", "sliding", "linear", "ska"])
def test_packed_sequences_go_on_under_autocast_from_states_of_full_precision(name):
    mixer = MIXERS[name]()
    hidden, cuts = torch.randn(1, 8, 32), torch.tensor([0, 3, 8])
    _, state = mixer(hidden, cu_seqlens=cuts, output_state=True)
    expected, _ = mixer(hidden[:, :4], state, cu_seqlens=torch.tensor([0, 1, 4]))
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = mixer(hidden[:, :4], state, cu_seqlens=torch.tensor([0, 1, 4]))
    torch.testing.assert_close(mixed.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SpectralKoopmanAttention(32, num_heads=2, rank=8, conv_kernel=1),
        lambda: SoftmaxAttention(32, num_heads=2, conv_kernel=1),
    ],
)
def test_taps_that_are_too_few_for_the_delay_are_named(make):
    with pytest.raises(ValueError, match="conv_kernel must be above key_delay, which is 1, got 1"):
        make()


def test_a_convolution_without_taps_is_refused():
    with pytest.raises(ValueError, match="kernel_size must be at least 1, got 0"):
        Mamba2(64, conv_kernel=0)
