"""The compiled CPU route: when it can be used, and what it keeps. That it computes the right thing is a law."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from echo_ska.nn import SpectralKoopmanAttention
from echo_ska.ops import set_value_checks, spectral_koopman_attention
from echo_ska.ops.arguments import Arguments
from echo_ska.ops.native.build import why_unavailable
from echo_ska.ops.native.kernels import most_segments, segment_starts

needs_compiler = pytest.mark.skipif(why_unavailable() is not None, reason=f"no native route: {why_unavailable()}")


def inputs(time: int, *, batch: int = 2, heads: int = 3, rank: int = 16, head_dim: int = 24, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    query, key = (
        F.normalize(torch.randn(batch, time, heads, rank, generator=generator, dtype=dtype), dim=-1) for _ in range(2)
    )
    value = torch.randn(batch, time, heads, head_dim, generator=generator, dtype=dtype)
    weight = torch.rand(batch, time, heads, generator=generator, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (query, key, value, weight)]


def run(tensors, **settings):
    settings = {"ridge": 0.5, "backend": "native"} | settings
    output, state = spectral_koopman_attention(*tensors, output_final_state=True, **settings)
    return output, state


def gradients(tensors, **settings):
    output, _ = run(tensors, **settings)
    return [output, *torch.autograd.grad(output.sin().sum(), tensors)]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_arithmetic_stays_near_the_definition(dtype):
    rounded = [tensor.detach().to(dtype) for tensor in inputs(700, batch=1)]
    tensors = [tensor.requires_grad_() for tensor in rounded]
    exact = [tensor.detach().double().requires_grad_() for tensor in rounded]
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2  # outputs and gradients are rounded to the inputs' dtype
    found, expected = gradients(tensors), gradients(exact, backend="recurrent")
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = (one - other).detach().abs().max() / other.detach().abs().max()
        assert float(error) < tolerance, f"{place}: {float(error):.2e}"


@needs_compiler
@pytest.mark.parametrize("interval", [8, 16, 32, 64, 100])
def test_float32_follows_one_key_repeated_from_the_first_token_on(interval):
    """Where every window is whitened by what it reads, the ridge costs nothing; short windows take float64 tokens."""
    query, _, value, _ = (tensor.detach().double() for tensor in inputs(512, batch=1, heads=1, rank=48))
    key = query[:, :1].expand(query.shape)
    settings = {"ridge": 1e-3, "refresh_interval": interval}
    expected = gradients([tensor.clone().requires_grad_() for tensor in (query, key, value)], **settings)
    found = gradients([tensor.float().requires_grad_() for tensor in (query, key, value)], **settings)
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = (one - other).detach().abs().max() / other.detach().abs().max()
        assert float(error) < 2e-5, f"{place}: {float(error):.2e}"


@needs_compiler
def test_the_published_layer_reads_one_token_repeated_in_float32():
    torch.manual_seed(0)
    layer = SpectralKoopmanAttention.paper(96, num_heads=2, rank=48, head_dim=48)
    torch.nn.init.normal_(layer.o_proj.weight, std=0.1)
    hidden = torch.randn(96).expand(1, 256, 96)
    exact = copy.deepcopy(layer).double()(hidden.double())[0]
    error = (layer(hidden)[0] - exact).detach().abs().max() / exact.detach().abs().max()
    assert float(error) < 1e-5


@needs_compiler
def test_the_number_of_threads_changes_nothing():
    threads = torch.get_num_threads()
    tensors = inputs(200)
    try:
        torch.set_num_threads(1)
        alone = gradients(tensors)
        torch.set_num_threads(3)
        together = gradients(tensors)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@needs_compiler
def test_a_forked_process_can_use_it():
    code = (
        "import os, sys, torch\n"
        "from echo_ska.ops import spectral_koopman_attention as op\n"
        "torch.set_num_threads(2)\n"
        "x = torch.randn(1, 40, 4, 8)\n"
        "first = op(x, x, x, ridge=1.0, backend='native')[0]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if torch.equal(op(x, x, x, ridge=1.0, backend='native')[0], first) else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def outputs_and_bytes_kept(tensors, **settings):
    """The output and all gradients, and the bytes that the forward pass kept for them."""
    sizes = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output, _ = run(tensors, **settings)
    return [output, *torch.autograd.grad(output.sin().sum(), tensors)], sum(sizes.values())


@needs_compiler
@pytest.mark.parametrize("interval", [None, 64])
def test_computing_again_gives_the_same_gradients_and_keeps_less(interval):
    tensors = inputs(700, dtype=torch.float64)
    keeping, many = outputs_and_bytes_kept(tensors, recompute=False, refresh_interval=interval)
    again, few = outputs_and_bytes_kept(tensors, recompute=True, refresh_interval=interval)
    for one, other in zip(keeping, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    rows = tensors[0].numel() * 3 * 8  # p_0 .. p_2 of every token
    assert many - few == rows


@needs_compiler
def test_left_to_itself_it_keeps_what_is_small(monkeypatch):
    tensors = inputs(100)
    kept, again = (outputs_and_bytes_kept(tensors, recompute=recompute)[1] for recompute in (False, True))
    assert outputs_and_bytes_kept(tensors)[1] == kept
    monkeypatch.setattr("echo_ska.ops.native.attention.KEPT_BYTES", 1000)
    assert outputs_and_bytes_kept(tensors)[1] == again < kept


@needs_compiler
def test_without_gradients_nothing_is_kept():
    tensors = [tensor.detach() for tensor in inputs(300)]
    output, state = run(tensors)
    assert not output.requires_grad
    assert not state.statistics.gram.requires_grad


@needs_compiler
def test_compile_and_export_take_it_as_one_node():
    layer = SpectralKoopmanAttention(32, num_heads=2, rank=8).double()
    x = torch.randn(2, 70, 32, dtype=torch.float64)
    expected = layer(x)[0]
    parameters = list(layer.parameters())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = compiled(x)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found.sin().sum(), parameters),
        torch.autograd.grad(expected.sin().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    length = torch.export.Dim("length", min=2, max=4096)
    exported = torch.export.export(layer, (x,), dynamic_shapes={"hidden_states": {1: length}})
    longer = torch.randn(2, 90, 32, dtype=torch.float64)
    torch.testing.assert_close(exported.module()(longer)[0], layer(longer)[0], rtol=0, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_a_chunk_causal_read_that_goes_on_within_a_window_is_compiled_whole(backend):
    torch.compiler.reset()
    tensors = inputs(100, dtype=torch.float64)
    _, state = run([tensor[:, :33].detach() for tensor in tensors], refresh_interval=5, backend=backend)

    def read(*tensors):
        return run(tensors, refresh_interval=5, initial_state=state, backend=backend)[0]

    found, expected = torch.compile(read, fullgraph=True, backend="aot_eager")(*tensors), read(*tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("interval", [5, 64])
def test_a_chunk_causal_read_from_the_start_is_compiled_whole(interval, backend):
    torch.compiler.reset()
    tensors = inputs(100, dtype=torch.float64)

    def read(*tensors):
        return run(tensors, refresh_interval=interval, backend=backend)[0]

    found, expected = torch.compile(read, fullgraph=True, backend="aot_eager")(*tensors), read(*tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(y.sin().sum(), tensors) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@needs_compiler
def test_a_graph_captured_without_gradients_refuses_to_be_differentiated():
    class Read(torch.nn.Module):
        def forward(self, *tensors):
            return run(tensors)[0]

    tensors = inputs(40)
    program = torch.export.export(Read(), tuple(tensor.detach() for tensor in tensors)).module()
    with pytest.raises(RuntimeError, match="capture it from inputs that require one"):
        torch.autograd.grad(program(*tensors).sum(), tensors)


@needs_compiler
def test_a_failed_factorisation_names_batch_row_and_head():
    tensors = [tensor.detach() for tensor in inputs(100)]
    tensors[1][1, 70, 2] = float("nan")
    checks = set_value_checks(False)
    try:
        with pytest.raises(ArithmeticError, match=r"batch row 1, head 2 \(1 of 6 failed"):
            run(tensors)
    finally:
        set_value_checks(checks)


@needs_compiler
def test_keys_that_its_float32_tokens_cannot_follow_are_named_as_such(monkeypatch):
    """As in a compiled call, where no value is known that would make the tokens float64."""
    monkeypatch.setattr(Arguments, "needs_float64", lambda self: False)
    tensors = [tensor.detach() for tensor in inputs(100)]
    tensors[1] = 1e4 * tensors[1]
    checks = set_value_checks(False)
    try:
        with pytest.raises(ArithmeticError, match=r"keys of a chunk are too long .* for torch.float32 tokens"):
            run(tensors, ridge=1e-6)
    finally:
        set_value_checks(checks)


@needs_compiler
def test_a_final_gram_gradient_that_is_not_symmetric_comes_back_as_the_definition_has_it():
    tensors = [tensor.detach().double() for tensor in inputs(40)]
    with torch.no_grad():
        start = run(tensors, backend="recurrent")[1]
    slope = torch.randn_like(start.statistics.gram)

    def gradient(backend):
        gram = start.statistics.gram.clone().requires_grad_()
        state = dataclasses.replace(start, statistics=dataclasses.replace(start.statistics, gram=gram))
        output, final = run(tensors, initial_state=state, backend=backend)
        return torch.autograd.grad(output.sum() + (slope * final.statistics.gram).sum(), gram)[0]

    assert torch.allclose(gradient("native"), gradient("recurrent"), rtol=1e-9, atol=1e-9)


@needs_compiler
def test_what_it_cannot_take_is_refused_and_chosen_by_nobody():
    tensors = inputs(70)
    with pytest.raises(ValueError, match="reads causally only"):
        run(tensors, causal=False)
    _, state = run(tensors, refresh_interval=64)
    more = inputs(9)
    with pytest.raises(ValueError, match="begins inside a window of refresh_interval tokens"):
        run(more, refresh_interval=64, initial_state=state)
    _, whole = run(inputs(64), refresh_interval=64)
    settings = {"refresh_interval": 64, "initial_state": whole}
    with pytest.raises(ValueError, match="what is frozen in the state has a gradient other than its sums"):
        run(more, **settings)
    with torch.no_grad():
        run(more, **settings)
        whole.frozen_statistics.gram.mul_(2)
        with pytest.raises(ValueError, match="what is frozen in the state is not its sums"):
            run(more, **settings)
    for settings in ({"causal": False}, {"refresh_interval": 64, "initial_state": state}):
        automatic, chunked = (run(more, backend=backend, **settings)[0] for backend in ("auto", "chunked"))
        assert torch.equal(automatic, chunked)


def test_a_machine_without_a_compiler_is_told_so_and_reads_chunked(tmp_path):
    code = (
        "import torch\n"
        "from echo_ska.ops import spectral_koopman_attention as op\n"
        "x = torch.randn(1, 40, 1, 8)\n"
        "assert torch.equal(op(x, x, x, ridge=1.0)[0], op(x, x, x, ridge=1.0, backend='chunked')[0])\n"
        "op(x, x, x, ridge=1.0, backend='native')\n"
    )
    environment = os.environ | {"CC": str(tmp_path / "no-such-compiler"), "ECHO_SKA_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith('ValueError: backend "native" cannot take this call')
    assert "no-such-compiler" in last_line


@pytest.mark.parametrize("interval", [0, 1, 5, 24, 64, 300])
@pytest.mark.parametrize("count", [0, 100, 10_000])
def test_segments_cover_a_sequence_in_whole_windows(interval, count):
    starts = segment_starts(7, 2007, count, interval)
    lengths = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert starts[0] == 7
    assert all(length > 0 and length % (interval or 32) == 0 for length in lengths)
    assert 0 < 2007 - starts[-1] <= max(256, interval)
    # No segment is longer than what stands before it, but for the first and for a window that is one segment.
    assert all(length <= max(64, interval, count + start - 7) for start, length in zip(starts, lengths, strict=False))


@pytest.mark.parametrize("interval", [0, 1, 3, 5, 24, 31, 32, 64, 300])
def test_there_is_room_for_the_segments_of_sequences_of_any_length(interval):
    for length in range(1, 800):
        for count in (0, 1, 63, 65, 100, 200, 255, 1000):
            assert len(segment_starts(0, length, count, interval)) <= most_segments(length, 1, interval)
    lengths = [0, 1, 193, 64, 0, 500]
    needed = sum(len(segment_starts(0, length, 0, interval)) for length in lengths)
    assert needed <= most_segments(sum(lengths), len(lengths), interval)
