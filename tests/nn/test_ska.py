"""The SKA layer: its start, its settings, and that it is the op and nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from echo_ska.algebra import SufficientStatistics
from echo_ska.nn import SpectralKoopmanAttention, ska
from echo_ska.nn.ska import part_statistics, unit_norm
from echo_ska.ops import spectral_koopman_attention
from echo_ska.ops.arguments import RIDGE_FLOOR


def layer(**settings):
    torch.manual_seed(0)
    return SpectralKoopmanAttention(32, **({"num_heads": 2, "rank": 8} | settings))


def test_it_is_the_op_on_its_projections():
    mixer = layer(conv_kernel=None)
    hidden = torch.randn(2, 21, 32)
    heads = (hidden @ projection.weight.T for projection in (mixer.qkv.q_proj, mixer.qkv.k_proj, mixer.qkv.v_proj))
    query, key, value = (projected.unflatten(-1, (2, -1)) for projected in heads)
    query, key = unit_norm(query), unit_norm(key)
    read, _ = spectral_koopman_attention(
        query,
        key,
        value,
        (1.1 * torch.sigmoid(mixer.gate_proj(hidden)) - 0.05).clamp(0, 1),
        ridge=mixer.ridge,
        power=2,
        blend=torch.full((2, 21, 2), 0.5),
        backend="recurrent",
    )
    expected = mixer.o_proj(mixer.norm(read).flatten(-2))
    assert torch.allclose(mixer(hidden)[0], expected, atol=1e-5)


def test_queries_start_as_keys_one_token_later():
    """W_q = W_k and the delay: the query at t equals the key stored at t + 1, so a repeated cue finds its answer."""
    mixer = layer()
    query, key, _, _ = mixer.qkv(torch.randn(1, 10, 32))
    assert torch.allclose(query[:, :-1], key[:, 1:], atol=1e-6)
    assert (key[:, 0] == 0).all()
    assert torch.equal(mixer.qkv.q_proj.weight, mixer.qkv.k_proj.weight)


def test_recall_works_before_any_training():
    """Cue, answer, ..., the cue again: the untrained layer's read is nearest to the answer's value."""
    mixer = layer(power=0)
    tokens = torch.randn(16, 32)  # 8 cues and 8 answers
    stored = torch.arange(16)
    asked = torch.arange(0, 16, 2)
    hidden = tokens[torch.cat([stored, asked])].unsqueeze(0)
    found = []
    for position in range(16, 24):
        read = mixer.qkv(hidden[:, : position + 1])
        query, key = F.normalize(read[0], dim=-1), F.normalize(read[1], dim=-1)
        output, _ = spectral_koopman_attention(query, key, read[2], ridge=1.0, power=0)
        answers = read[2][0, 1:16:2].flatten(1)
        found.append(int(F.cosine_similarity(output[0, -1].flatten(), answers).argmax()))
    assert sum(a == b for a, b in zip(found, range(8), strict=True)) >= 6


@pytest.mark.parametrize("initial_ridge", [1e-3, 1.0, 30.0])
def test_the_ridge_starts_where_it_is_told(initial_ridge):
    assert torch.allclose(layer(initial_ridge=initial_ridge).ridge, torch.full((2,), initial_ridge), rtol=1e-4)


def test_the_paper_preset():
    mixer = SpectralKoopmanAttention.paper(32, num_heads=2, rank=8)
    assert (mixer.power, mixer.refresh_interval, mixer.normalisation) == (2, 64, "sequence-max")
    assert torch.allclose(mixer.ridge, torch.full((2,), 1e-3), rtol=1e-4)
    assert mixer.qkv.convolution is None
    assert mixer.gate_proj is None
    output, _ = mixer(torch.randn(2, 70, 32))
    assert (output == 0).all(), "its output projection starts at zero"


@pytest.mark.parametrize("prefix_mask", [False, True])
@pytest.mark.parametrize("cu_seqlens", [None, torch.tensor([0, 0])])
def test_the_paper_preset_takes_no_tokens(prefix_mask, cu_seqlens):
    mixer = SpectralKoopmanAttention.paper(32, num_heads=2, rank=8, prefix_mask=prefix_mask)
    mixed, _ = mixer(torch.randn(1, 0, 32, requires_grad=True), cu_seqlens=cu_seqlens)
    assert mixed.shape == (1, 0, 32)
    mixed.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in mixer.parameters())


def test_the_paper_preset_reads_a_masked_prefix():
    mixer = SpectralKoopmanAttention.paper(32, num_heads=2, rank=8, prefix_mask=True)
    torch.nn.init.normal_(mixer.o_proj.weight)
    hidden = torch.randn(1, 20, 32)
    mask = torch.arange(20)[None] < 12
    hidden[:, 12:] *= 0.1  # the largest key, which every token is divided by, lies inside the mask
    before, _ = mixer(hidden, write_mask=mask)
    hidden[:, 15:] *= 0.5
    after, _ = mixer(hidden, write_mask=mask)
    assert torch.allclose(before[:, :15], after[:, :15], atol=1e-6)
    assert not torch.allclose(before[:, 15:], after[:, 15:], atol=1e-3)


def test_a_layer_that_sees_the_future_has_no_state():
    mixer = SpectralKoopmanAttention.paper(32, num_heads=2, rank=8)
    with pytest.raises(ValueError, match="has no state: run it on whole sequences with use_cache=False"):
        mixer(torch.randn(1, 5, 32), output_state=True)


def test_a_ridge_at_the_floor_runs_in_half_precision():
    mixer = layer().bfloat16()
    with torch.no_grad():
        mixer.raw_ridge.fill_(-9.0)
    assert mixer.ridge.dtype == torch.float32
    mixed, _ = mixer(torch.randn(1, 8, mixer.o_proj.out_features, dtype=torch.bfloat16))
    assert mixed.isfinite().all()


def test_a_ridge_below_the_floor_reads_as_the_floor_and_still_learns():
    mixer = layer()
    with torch.no_grad():
        mixer.raw_ridge.copy_(torch.tensor([-8.0, 0.5]))
        expected = F.softplus(mixer.raw_ridge).clamp_min(RIDGE_FLOOR)
        assert torch.equal(mixer.ridge, expected)
    assert torch.equal(mixer.ridge, expected)
    mixer(torch.randn(1, 9, 32))[0].square().sum().backward()
    assert (mixer.raw_ridge.grad != 0).all()
    optimizer = torch.optim.Adam([mixer.raw_ridge], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (mixer.ridge - 1).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(mixer.ridge, torch.ones(2), rtol=0, atol=1e-3)


def test_sequence_max_normalisation_is_per_packed_sequence():
    mixer = SpectralKoopmanAttention.paper(32, num_heads=2, rank=8)
    torch.nn.init.normal_(mixer.o_proj.weight)
    hidden = torch.randn(1, 200, 32)
    packed, _ = mixer(hidden, cu_seqlens=torch.tensor([0, 80, 80, 200]))
    separate = torch.cat([mixer(hidden[:, :80])[0], mixer(hidden[:, 80:])[0]], dim=1)
    assert torch.allclose(packed, separate, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "hidden_size 32 is no multiple of num_heads 3: give head_dim"),
        ({"initial_ridge": 1e-4}, r"initial_ridge must be at least 0.0005, .*, got 0.0001"),
        ({"initial_ridge": float("nan")}, "initial_ridge must be at least 0.0005"),
        ({"initial_ridge": float("inf")}, "initial_ridge must be at least 0.0005, .*, and finite, got inf"),
        ({"normalisation": "batch"}, "normalisation must be"),
        ({"num_heads": 0}, "num_heads must be an integer >= 1, got 0"),
        ({"rank": 0}, "rank must be an integer >= 1, got 0"),
        ({"power": -1}, "power must be an integer >= 0, got -1"),
        ({"power": 1.5}, "power must be an integer >= 0, got 1.5"),
        ({"power": True}, "power must be an integer >= 0, got True"),
        ({"refresh_interval": 0}, "refresh_interval must be an integer >= 1 or None, got 0"),
        ({"refresh_interval": 2.5}, "refresh_interval must be an integer >= 1 or None, got 2.5"),
        ({"conv_kernel": 2.0}, "conv_kernel must be an integer >= 1 or None, got 2.0"),
        ({"key_delay": 1.5}, "key_delay must be an integer >= 0, got 1.5"),
        ({"norm_eps": "x"}, "norm_eps must be a positive number, got 'x'"),
        ({"blended": "no"}, "blended must be True or False, got 'no'"),
        ({"gate_dropout": "half"}, "gate_dropout must be at least 0 and below 1, got 'half'"),
        ({"refresh_interval": 8, "causal": False}, "refresh_interval is for causal reading"),
    ],
)
def test_settings_that_exclude_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        layer(**settings)


def test_gradients_start_small():
    """The first key of every sequence starts at 0, where a plain norm has no derivative."""
    mixer = layer()
    mixer(torch.randn(8, 30, 32))[0].square().mean().backward()
    norms = {name: float(parameter.grad.norm()) for name, parameter in mixer.named_parameters()}
    assert max(norms.values()) < 10, norms


def test_gate_dropout_opens_whole_heads_of_rows_in_training_alone():
    mixer = layer(gate_dropout=0.4, power=0)
    closed, opened = layer(gate_dropout=0.0, power=0), layer(write_gate=False, power=0)
    for other in (closed, opened):
        other.load_state_dict(mixer.state_dict(), strict=False)
        other.o_proj = torch.nn.Identity()
    mixer.o_proj = torch.nn.Identity()
    hidden = torch.randn(40, 9, 32)
    torch.manual_seed(1)
    found = mixer(hidden)[0].unflatten(-1, (2, -1))
    by_gate, by_none = (other(hidden)[0].unflatten(-1, (2, -1)) for other in (closed, opened))
    of_gate = torch.isclose(found, by_gate, atol=1e-5).all(dim=-1).all(dim=1)  # [B, H]
    of_none = torch.isclose(found, by_none, atol=1e-5).all(dim=-1).all(dim=1)
    assert (of_gate ^ of_none).all()
    assert 0.25 < of_none.float().mean() < 0.55
    assert torch.equal(mixer.eval()(hidden)[0].unflatten(-1, (2, -1)), by_gate)
    mask = torch.zeros(40, 9, dtype=torch.bool)
    assert not mixer.train()(hidden, write_mask=mask)[0].any()  # what is masked stays unwritten
    with pytest.raises(ValueError, match="gate_dropout must be at least 0 and below 1, got 1"):
        layer(gate_dropout=1)


def test_gate_dropout_draws_for_each_sequence_of_a_packed_batch_as_for_rows():
    mixer = layer(gate_dropout=0.5).train()
    hidden, outputs = torch.randn(6, 5, 32), []
    for packed in (False, True):
        torch.manual_seed(3)
        if packed:
            outputs.append(mixer(hidden.flatten(0, 1)[None], cu_seqlens=torch.arange(0, 31, 5))[0].view(6, 5, 32))
        else:
            outputs.append(mixer(hidden)[0])
    assert torch.allclose(*outputs, atol=1e-5)
    assert not torch.allclose(outputs[0], mixer.eval()(hidden)[0], atol=1e-3)


def test_a_closed_gate_leaves_the_state_untouched():
    mixer = layer()
    _, state = mixer(torch.randn(2, 9, 32), output_state=True)
    torch.nn.init.constant_(mixer.gate_proj.bias, -9.0)
    _, after = mixer(torch.randn(2, 500, 32), state, output_state=True)
    for name in ("gram", "lag_moment", "value_moment"):
        kept = getattr(after.recurrent.statistics, name)
        assert torch.equal(kept, getattr(state.recurrent.statistics, name)), name


def test_every_parameter_gets_a_gradient():
    mixer = layer()
    mixer(torch.randn(2, 30, 32))[0].square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_a_layer_that_sees_the_future_cannot_decode():
    mixer = SpectralKoopmanAttention.paper(32, num_heads=2, rank=8)
    with pytest.raises(ValueError, match="reads the whole sequence cannot decode"):
        mixer.step(torch.randn(1, 1, 32), mixer.init_state(1))


def test_a_step_costs_no_factorisation(monkeypatch):
    mixer = layer()
    _, state = mixer(torch.randn(2, 9, 32), output_state=True)
    mixer.step(torch.randn(2, 1, 32), state)  # this one makes the inverse

    def refused(*arguments, **settings):
        raise AssertionError("a matrix was factored")

    monkeypatch.setattr(torch.linalg, "cholesky_ex", refused)
    for _ in range(20):
        mixer.step(torch.randn(2, 1, 32), state)


@pytest.mark.parametrize("length", [0, 1, 6, 7, 30])
def test_a_part_is_summed_up_in_segments_with_gradients(length, monkeypatch):
    monkeypatch.setattr(ska, "SUMMARY_SEGMENT", 6)
    torch.manual_seed(0)
    tokens = [torch.randn(2, length, 3, size, dtype=torch.float64) for size in (4, 5)]
    tokens.append(torch.rand(2, length, 3, dtype=torch.float64))
    results = []
    for function in (part_statistics, SufficientStatistics.from_tokens):
        leaves = [tensor.clone().requires_grad_() for tensor in tokens]
        if length == 0:
            assert not any(bool(tensor.any()) for tensor in part_statistics(*leaves).tensors().values())
            return
        found = function(*leaves).tensors()
        loss = sum((tensor.sin() * (place + 1)).sum() for place, tensor in enumerate(found.values()))
        results.append([*found.values(), *torch.autograd.grad(loss, leaves)])
    for mine, its in zip(*results, strict=True):
        assert torch.allclose(mine, its, atol=1e-12)
