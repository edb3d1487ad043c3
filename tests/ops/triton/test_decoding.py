"""The decoding kernel is the definition, token after token."""

from __future__ import annotations

import pytest
import torch
from cases import make_case

CASES = {
    "ridge regression": {"rank": 5, "head_dim": 3, "power": 0},
    "blended": {"rank": 5, "head_dim": 3, "power": 2, "blend": True},
    "unweighted": {"rank": 24, "head_dim": 70, "power": 1, "masks": False},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("setting", CASES)
def test_decoding_is_the_definition(setting, dtype, device):
    from echo_ska.ops.triton.decoding import decode_step

    case = make_case(6, batch=2, heads=2, **CASES[setting])
    case = type(case)({n: t.to(dtype) if t.dim() > 1 else t for n, t in case.tensors.items()}, case.settings)
    begun = case.tokens(0, 3).to(torch.float64)
    _, state = begun.run(backend="recurrent")
    statistics, ridge = state.statistics, case.tensors["ridge"]
    stacked = [statistics.gram, statistics.lag_moment.mT, statistics.value_moment]
    moments = torch.cat(stacked, dim=-2).to(device).contiguous()
    rank, power = statistics.gram.shape[-1], case.settings["power"]
    regular = statistics.gram + ridge[:, None, None] * torch.eye(rank, dtype=torch.float64)
    inverse = torch.linalg.inv(regular).to(device).contiguous()
    previous_key = statistics.previous_key.clone().to(device)
    filtered = (case.tensors["scale"] * case.tensors["gain"] ** power).expand(2, 2)
    for t in range(3, 6):
        now = {n: x[:, t].to(device) for n, x in case.tensors.items() if x.dim() > 1}
        blend, plain, factor = now.get("blend"), None, filtered
        if blend is not None:
            plain = (case.tensors["scale"] * (1 - blend.cpu().double())).to(device)
            factor = filtered * blend.cpu().double()
        token = (now["query"], now["key"], now["value"], now.get("write_weight"))
        found = decode_step(moments, inverse, previous_key, *token, plain, factor.to(device).contiguous(), power)
        expected, state = case.tokens(t, t + 1).to(torch.float64).run(backend="recurrent", initial_state=state)
        assert found.dtype is dtype
        tolerance = 1e-12 if dtype is torch.float64 else 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(found.cpu().double(), expected[:, 0], rtol=tolerance, atol=tolerance)
    statistics = state.statistics
    torch.testing.assert_close(moments[:, :, :rank].cpu(), statistics.gram, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments[:, :, rank : 2 * rank].cpu(), statistics.lag_moment.mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments[:, :, 2 * rank :].cpu(), statistics.value_moment, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(previous_key.cpu(), statistics.previous_key, rtol=1e-12, atol=1e-12)
    regular = statistics.gram + ridge[:, None, None] * torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(inverse.cpu(), torch.linalg.inv(regular), rtol=1e-9, atol=1e-9)


def test_a_state_that_cannot_be_changed_in_place_is_refused(device):
    from echo_ska.ops.triton.decoding import decode_step

    moments = torch.zeros(1, 1, 4, 13, device=device, dtype=torch.float64).mT
    inverse, previous = moments[:, :, :4].contiguous(), moments[:, :, 0].contiguous()
    token = torch.ones(1, 1, 4, device=device)
    with pytest.raises(ValueError, match="moments must be contiguous"):
        decode_step(moments, inverse, previous, token, token, token[..., :3], None, None, token[..., 0], 0)


@pytest.mark.parametrize("setting", CASES)
def test_the_decoder_takes_the_kernel_where_it_can(setting, device, monkeypatch):
    """`ops.decoding.decode_step` from an empty state on, by the kernel alone."""
    from echo_ska.ops import decoding

    if device == "cpu":
        monkeypatch.setattr(decoding, "can_step", lambda moments: False)
        monkeypatch.setattr(decoding, "can_decode", lambda moments: True)
    case = make_case(5, batch=2, heads=2, **CASES[setting])
    expected, last = case.run(backend="recurrent")
    per_head = {n: t.to(device) for n, t in case.tensors.items() if t.dim() == 1}
    ridge, power = per_head["ridge"], case.settings["power"]
    state = decoding.DecodingState.of(case.tokens(0, 0).run(backend="recurrent")[1].to(device), ridge)
    for t in range(5):
        token = {n: x[:, t].to(device) for n, x in case.tensors.items() if x.dim() > 1}
        found = decoding.decode_step(state, **token, **per_head, power=power)
        torch.testing.assert_close(found.cpu(), expected[:, t], rtol=1e-9, atol=1e-9)
    assert state._views is None  # nothing was done by PyTorch's way
    for name, tensor in last.tensors().items():
        torch.testing.assert_close(state.to_recurrent().tensors()[name].cpu(), tensor, rtol=1e-9, atol=1e-9)
