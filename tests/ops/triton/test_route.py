"""The Triton route is the definition in float64: outputs, states and gradients."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
from cases import Case, assert_same, make_case, outcome

from echo_ska.algebra import concatenate
from echo_ska.ops import spectral_koopman_attention

RECURRENT = {"backend": "recurrent"}


@dataclasses.dataclass
class OnDevice(Case):
    """A case that runs on a device and brings back what it found."""

    device: str = "cpu"

    def run(self, **overrides):
        def move(given):
            return given.to(self.device) if hasattr(given, "to") else given

        tensors = {name: move(tensor) for name, tensor in self.tensors.items()}
        overrides = {name: move(given) for name, given in overrides.items()}
        output, state = Case(tensors, self.settings).run(**({"backend": "triton"} | overrides))
        return output.cpu(), state.to("cpu")

    def requires_grad(self) -> OnDevice:
        return OnDevice(super().requires_grad().tensors, self.settings, self.device)


def single(case: Case) -> tuple[Case, Case]:
    """The case in float32, and those same numbers in float64."""
    rounded = case.to(torch.float32)
    return rounded, rounded.to(torch.float64)


def assert_agrees(found: dict, expected: dict) -> None:
    """1e-4 for outputs and states, 1e-3 for gradients; seen: 1e-6."""
    gradients = {name for name in expected if name.startswith("gradient")}
    for names, tolerance in ((expected.keys() - gradients, 1e-4), (gradients, 1e-3)):
        assert_same({n: found[n] for n in found if n in names}, {n: expected[n] for n in names}, tolerance)
    assert found.keys() == expected.keys()


def assert_route_agrees(case: Case, device: str, **overrides) -> None:
    rounded, exact = single(case)
    found = outcome(OnDevice(rounded.tensors, rounded.settings, device), **overrides)
    assert_agrees(found, outcome(exact, **RECURRENT))


EXACT = {
    "one token": {"time": 1, "power": 2, "blend": True},
    "ridge regression": {"time": 7, "power": 0, "rank": 24, "head_dim": 40},
    "blended ridge regression": {"time": 3, "power": 0, "blend": True},
    "two chunks and one token": {"time": 33, "power": 1, "chunk_size": 16, "heads": 1},
    "rows and heads": {"time": 18, "power": 2, "blend": True, "chunk_size": 16, "batch": 2, "heads": 2},
    "a chunk that is no power of two": {"time": 29, "power": 2, "chunk_size": 12, "heads": 1},
    "the default chunk": {"time": 65, "power": 2, "heads": 1, "masks": False},
    "rank 48, wide values": {"time": 9, "power": 2, "blend": True, "rank": 48, "head_dim": 70},
}


@pytest.mark.parametrize("setting", EXACT)
def test_the_exact_read_is_the_definition_with_gradients(setting, device):
    options = {"batch": 1, "heads": 1} | EXACT[setting]
    chunk_size = options.pop("chunk_size", None)
    assert_route_agrees(make_case(options.pop("time"), **options), device, chunk_size=chunk_size)


READINGS = {
    "read before write": (3, {"refresh_interval": 1}),
    "refresh": (13, {"refresh_interval": 5}),
    "a refresh longer than a chunk": (50, {"refresh_interval": 40}),
    "the first chunk reads zeros": (7, {"refresh_interval": 64}),
    "non-causal": (18, {"causal": False}),
}


@pytest.mark.parametrize("reading", READINGS)
def test_the_other_reads_are_the_definition_with_gradients(reading, device):
    time, settings = READINGS[reading]
    assert_route_agrees(make_case(time, batch=1, heads=1, blend=True, **settings), device, chunk_size=16)


@pytest.mark.parametrize("rank", [96, 128])
def test_large_ranks(rank, device):
    case = make_case(3, batch=1, heads=1, rank=rank, head_dim=32, power=1)
    rounded, exact = single(case)
    output, state = OnDevice(rounded.tensors, rounded.settings, device).run()
    expected, final = exact.run(**RECURRENT)
    assert_same({"output": output} | state.tensors(), {"output": expected} | final.tensors(), 1e-4)


@pytest.mark.parametrize("settings", [{}, {"refresh_interval": 5}, {"causal": False}], ids=["exact", "refresh", "all"])
def test_packed_sequences_that_continue_are_the_definition_with_gradients(settings, device):
    """Sequences of different lengths, none of them and one token among them, that stand at different positions."""
    lengths, before = [1, 0, 18, 5], [3, 4, 10, 2]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    rounded, exact = single(make_case(sum(lengths), batch=1, heads=1, blend=True, **settings))
    warm_up = single(make_case(10, batch=1, heads=1, seed=3, **settings))[1]
    start = concatenate([warm_up.tokens(0, n).run(**RECURRENT)[1] for n in before])

    def gradients(case, **overrides):
        carried = {n: t for n, t in start.clone().tensors().items() if t.is_floating_point() and "first" not in n}
        leaves = {name: t.requires_grad_() for name, t in carried.items()}
        # A Gram matrix is symmetric: it has no other direction to move in.
        moved = {n: (t + t.mT) / 2 if n.endswith("gram") else t for n, t in leaves.items()}
        state = dataclasses.replace(
            start,
            statistics=_with(start.statistics, moved, "statistics."),
            frozen_statistics=_with(start.frozen_statistics, moved, "frozen_statistics."),
        )
        found = outcome(case, initial_state=state, cu_seqlens=bounds, **overrides)
        output, final = case.run(initial_state=state, cu_seqlens=bounds, **overrides)
        objective = output.double().sin().sum() + final.statistics.value_moment.double().sin().sum()
        if final.frozen_statistics is not None:
            objective = objective + final.frozen_statistics.lag_moment.double().cos().sum()
        found_state = torch.autograd.grad(objective, list(leaves.values()), allow_unused=True)
        for (name, leaf), gradient in zip(leaves.items(), found_state, strict=True):
            found[f"gradient of {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
        return found

    found = gradients(OnDevice(rounded.tensors, rounded.settings, device), chunk_size=8)
    expected = gradients(exact, **RECURRENT)
    if settings == {"refresh_interval": 5}:
        # At a refresh the frozen statistics are the statistics: the definition sends the gradient of the tokens that
        # read them to the one, this route to the other.
        for found_or_expected in (found, expected):
            _add_at_refresh(found_or_expected, start.position % 5 == 0)
    assert_agrees(found, expected)


def test_a_window_that_begins_with_other_sums_than_are_frozen_is_left_to_another_route(device):
    case = single(make_case(12, batch=1, heads=1, refresh_interval=4))[0]
    before, after = (OnDevice(part.tensors, part.settings, device) for part in (case.tokens(0, 8), case.tokens(8, 12)))
    _, state = before.run()
    after.run(initial_state=state)
    state.frozen_statistics.gram.mul_(2)
    with pytest.raises(ValueError, match="what is frozen in the state is not its sums, though a window begins"):
        after.run(initial_state=state)


def _with(statistics, tensors, prefix):
    if statistics is None:
        return None
    names = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return dataclasses.replace(statistics, **names)


def _add_at_refresh(found, rows):
    for name in ("gram", "lag_moment", "value_moment", "previous_key"):
        frozen = found[f"gradient of frozen_statistics.{name}"]
        found[f"gradient of statistics.{name}"] = found[f"gradient of statistics.{name}"].index_put(
            (rows.nonzero()[:, 0],), frozen[rows], accumulate=True
        )
        found[f"gradient of frozen_statistics.{name}"] = frozen.index_fill(0, rows.nonzero()[:, 0], 0.0)


@pytest.mark.parametrize("settings", [{}, {"refresh_interval": 5}], ids=["exact", "refresh"])
def test_a_workspace_of_one_chunk_changes_nothing(settings, device, monkeypatch):
    """Long sequences go through in segments; here every chunk is one."""
    monkeypatch.setattr(importlib.import_module("echo_ska.ops.triton.function"), "SEGMENT_BYTES", 1)
    assert_route_agrees(make_case(14, batch=2, heads=1, **settings), device, chunk_size=8)


def test_gradients_flow_through_a_split(device):
    rounded, exact = single(make_case(19, batch=1, heads=1))
    exact = exact.requires_grad()
    expected, _ = exact.run(**RECURRENT)
    split = OnDevice(rounded.tensors, rounded.settings, device).requires_grad()
    outputs, state = [], None
    for begin, end in ((0, 7), (7, 19)):
        part = OnDevice(split.tokens(begin, end).tensors, split.settings, device)
        output, state = part.run(initial_state=state, chunk_size=8)
        outputs.append(output)
    output = torch.cat(outputs, dim=1)
    assert_same({"output": output}, {"output": expected}, 1e-4)
    found = torch.autograd.grad(output.double().sin().sum(), list(split.tensors.values()))
    wanted = torch.autograd.grad(expected.sin().sum(), list(exact.tensors.values()))
    assert_same(dict(enumerate(found)), dict(enumerate(wanted)), 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_the_output_alone(dtype, device):
    case = make_case(20, batch=1, heads=1, rank=16, head_dim=8, blend=True).to(dtype)
    found = outcome(OnDevice(case.tensors, case.settings, device), chunk_size=16)
    expected = outcome(case.to(torch.float64), **RECURRENT)
    assert found["output"].dtype is dtype
    assert found["gradient of key"].dtype is dtype
    assert found["state.statistics.gram"].dtype is torch.float64
    assert_same(found, expected, 2 * torch.finfo(dtype).eps)


def test_few_distinct_keys_stay_exact(device):
    """Four keys repeated at rank 16: what is not in their span stays the ridge, to float64, whatever the length."""
    case = make_case(48, batch=1, heads=1, rank=16, power=0, masks=False)
    case.tensors["key"] = case.tensors["key"][:, torch.arange(48) % 4]
    rounded, exact = single(case)
    _, state = OnDevice(rounded.tensors, rounded.settings, device).run(chunk_size=16)
    _, expected = exact.run(**RECURRENT)
    assert_same({"gram": state.statistics.gram}, {"gram": expected.statistics.gram}, 1e-14)


def test_a_zero_weight_has_a_gradient_of_zero(device):
    rounded, _ = single(make_case(9, batch=1, heads=1))
    rounded.tensors["write_weight"][:, 4] = 0.0
    found = outcome(OnDevice(rounded.tensors, rounded.settings, device))
    assert all(t.isfinite().all() for t in found.values())
    assert (found["gradient of write_weight"][:, 4] == 0).all()
    assert (found["gradient of write_weight"][:, 3] != 0).all()


def test_strided_inputs_are_read_and_left_alone(device):
    rounded, _ = single(make_case(9, batch=2, heads=2))
    strided = {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in rounded.tensors.items()}
    before = {name: t.clone() for name, t in strided.items()}
    expected, _ = OnDevice(rounded.tensors, rounded.settings, device).run()
    found, _ = OnDevice(strided, rounded.settings, device).run()
    assert torch.equal(found, expected)
    assert all(torch.equal(before[name], t) for name, t in strided.items())


@pytest.mark.parametrize("bad", [4, 17], ids=["statistics", "own tokens"])
def test_a_failed_factorisation_names_row_and_head(bad, device):
    """An infinite key at token `bad`; the value checks, which would say so first, are off."""
    from echo_ska.ops import set_value_checks

    case = make_case(18, batch=2, heads=2, masks=False).to(torch.float32)
    case.tensors["key"][1, bad, 1] = float("inf")
    previous = set_value_checks(False)
    try:
        with pytest.raises(ArithmeticError, match="batch row 1, head 1"):
            OnDevice(case.tensors, case.settings, device).run(chunk_size=9)
    finally:
        set_value_checks(previous)


def test_what_cannot_be_honoured_is_refused(device):
    case = make_case(3, batch=1, heads=1, rank=4)
    with pytest.raises(ValueError, match=r"query is torch.float64: convert it to float32"):
        OnDevice(case.tensors, case.settings, device).run()
    case = case.to(torch.float32)
    with pytest.raises(ValueError, match=r"chunk_size 65 is above 64"):
        OnDevice(case.tensors, case.settings, device).run(chunk_size=65)
    wide = make_case(2, batch=1, heads=1, rank=129).to(torch.float32)
    with pytest.raises(ValueError, match="rank 129 is above 128"):
        OnDevice(wide.tensors, wide.settings, device).run()


def test_tensors_off_the_gpu_are_refused_unless_interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    case = make_case(3, batch=1, heads=1).to(torch.float32)
    with pytest.raises(ValueError, match=r'move them to a GPU.*or use backend="chunked"'):
        spectral_koopman_attention(**case.tensors, backend="triton")


def test_a_machine_without_triton_is_told_so(monkeypatch):
    monkeypatch.setattr(importlib.import_module("echo_ska.ops.triton.support"), "installed", lambda: False)
    case = make_case(3, batch=1, heads=1).to(torch.float32)
    with pytest.raises(ValueError, match="triton is not installed: pip install"):
        spectral_koopman_attention(**case.tensors, backend="triton")


def test_a_second_derivative_is_refused(device):
    case = OnDevice(make_case(9, batch=1, heads=1).to(torch.float32).tensors, {"power": 2}, device).requires_grad()
    output, _ = case.run()
    (gradient,) = torch.autograd.grad(output.sum(), case.tensors["key"], create_graph=True)
    with pytest.raises(RuntimeError, match='call it with backend="recurrent"'):
        torch.autograd.grad(gradient.square().sum(), case.tensors["key"])


@pytest.mark.parametrize("interval", [None, 4])
def test_the_default_device_does_not_matter(interval, device):
    generator = torch.Generator().manual_seed(0)
    tokens = {
        name: torch.randn(1, 9, 2, 4, generator=generator).to(device).requires_grad_()
        for name in ("query", "key", "value")
    }
    bounds = torch.tensor([0, 7, 9])

    def outputs_and_gradient():
        output, state = spectral_koopman_attention(
            **tokens, ridge=1.0, refresh_interval=interval, cu_seqlens=bounds, backend="triton", output_final_state=True
        )
        return output, *torch.autograd.grad(output.sum() + state.statistics.gram.sum(), tokens["key"])

    expected = outputs_and_gradient()
    with torch.device("meta"):
        found = outputs_and_gradient()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
