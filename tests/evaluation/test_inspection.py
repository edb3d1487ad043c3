"""What is measured of SKA heads is what the layers do: same sums, same weights, the spectra of independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from echo_ska.evaluation.inspection import Inspection, inspect_model, measured_positions
from echo_ska.models import EchoCache, EchoConfig, EchoForCausalLM
from echo_ska.nn import SpectralKoopmanAttention
from echo_ska.ops.arguments import RIDGE_FLOOR

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_heads": 2, "rank": 5, "state_size": 4}
LENGTH = 150
IDS = torch.randint(64, (LENGTH,), generator=torch.Generator().manual_seed(7))

MODELS = {
    "two layers": {"layer_types": ["mamba2", "ska", "ska", "mamba2"]},
    "power 0": {"layer_types": ["mamba2", "ska", "mamba2"], "power": 0},
    "not blended": {"layer_types": ["mamba2", "ska", "mamba2"], "power": 3, "blended": False},
    "refresh interval": {"layer_types": ["mamba2", "ska", "mamba2"], "refresh_interval": 16},
    "the paper's": {"layer_types": ["mamba2", "ska-paper", "mamba2"]},
}


def build(**settings) -> EchoForCausalLM:
    torch.manual_seed(0)
    model = EchoForCausalLM(EchoConfig(**SIZES, num_hidden_layers=len(settings["layer_types"]), **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Gates that also close and open for good; ridges, gains and blends that differ.
            strength = 3.0 if "gate_proj" in name else 0.3
            parameter.add_(strength * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=list(MODELS))
def model(request) -> EchoForCausalLM:
    return build(**MODELS[request.param])


def ska_layers(model: EchoForCausalLM) -> dict[int, SpectralKoopmanAttention]:
    return {place: m for place, m in enumerate(model.model.mixers) if isinstance(m, SpectralKoopmanAttention)}


def seen_by(model: EchoForCausalLM, place: int, ids: torch.Tensor) -> torch.Tensor:
    """What reaches the mixer of a layer, [1, T, d], by Hugging Face's own hidden states."""
    with torch.no_grad():
        states = model(ids[None], output_hidden_states=True, use_cache=False).hidden_states
        return model.model.layers[place].mixer_norm(states[place])


def assert_same(left: Inspection, right: Inspection, tolerance: float) -> None:
    for one, other in zip(left.layers, right.layers, strict=True):
        assert torch.equal(one.positions, other.positions)
        for name in ("gram_eigenvalues", "operator_norm", "write_weight", "blend", "effective_rank"):
            first, second = getattr(one, name), getattr(other, name)
            assert (first is None) == (second is None)
            if first is not None:
                torch.testing.assert_close(first, second, rtol=0, atol=tolerance)


def test_spectra_are_those_of_independent_sums(model):
    positions = [1, 2, 40, LENGTH]
    found = inspect_model(model, IDS, positions=positions)
    assert [layer.layer for layer in found.layers] == list(ska_layers(model))
    for layer, mixer in zip(found.layers, ska_layers(model).values(), strict=True):
        with torch.no_grad():
            inputs, _ = mixer.head_inputs(seen_by(model, layer.layer, IDS))
        for head in range(mixer.num_heads):
            weight = 1.0 if inputs.write_weight is None else inputs.write_weight[0, :, head, None].double().numpy()
            keys = np.sqrt(weight) * inputs.key[0, :, head].double().numpy()
            ridge = float(mixer.ridge[head].detach())
            for row, tokens in enumerate(positions):
                x = keys[:tokens]
                gram, lag = x.T @ x, x[1:].T @ x[:-1]
                expected = np.linalg.eigvalsh(gram)
                np.testing.assert_allclose(layer.gram_eigenvalues[row, head], expected, atol=1e-4)
                rank = np.trace(np.linalg.solve(gram + ridge * np.eye(len(gram)), gram))
                assert float(layer.effective_rank[row, head]) == pytest.approx(rank, abs=1e-4)
                condition = np.linalg.cond(gram + ridge * np.eye(len(gram)))
                assert float(layer.condition[row, head]) == pytest.approx(condition, rel=1e-3)
                if mixer.power == 0:
                    assert layer.operator_eigenvalues is None
                    continue
                plain = lag @ np.linalg.inv(gram + ridge * np.eye(len(gram)))
                # A polynomial's coefficients, not its roots: those of a nearly defective matrix are ill-conditioned.
                theirs, ours = np.linalg.eigvals(plain), layer.operator_eigenvalues[row, head].numpy()
                np.testing.assert_allclose(np.poly(ours), np.poly(theirs), atol=1e-4)
                assert float(layer.operator_norm[row, head]) < 1
                assert abs(ours).max() <= float(layer.operator_norm[row, head]) + 1e-9


def test_eigenvalues_are_numpys_to_the_last_digits():
    """On the very sums that were measured, so that nothing but the eigenvalues can differ."""
    layer = inspect_model(build(**MODELS["two layers"]), IDS).layers[0]
    for head in range(2):
        gram, lag = (getattr(layer.statistics, name)[0, head].numpy() for name in ("gram", "lag_moment"))
        expected = np.linalg.eigvals(lag @ np.linalg.inv(gram + float(layer.ridge[head]) * np.eye(len(gram))))
        found = layer.operator_eigenvalues[-1, head].numpy()
        np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(expected), atol=1e-9)
        assert list(abs(found)) == sorted(abs(found), reverse=True)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "the paper's"])
def test_sums_are_those_of_the_layers_own_state(name):
    model = build(**MODELS[name])
    cache = EchoCache(model.config)
    with torch.no_grad():
        model(IDS[None], past_key_values=cache, use_cache=True)
    for layer in inspect_model(model, IDS).layers:
        kept = cache.layers[layer.layer].state.recurrent.statistics
        for field in ("gram", "lag_moment", "value_moment", "previous_key", "count"):
            torch.testing.assert_close(
                getattr(layer.statistics, field), getattr(kept, field), atol=1e-4, rtol=1e-4, msg=field
            )


def test_weights_and_blends_are_the_layers(model, monkeypatch):
    """Those that the op is called with in the layer's own forward."""
    given: list[dict] = []
    op = SpectralKoopmanAttention.forward.__globals__["spectral_koopman_attention"]

    def listening(query, key, value, write_weight, **keywords):
        given.append({"write_weight": write_weight, "blend": keywords["blend"]})
        return op(query, key, value, write_weight, **keywords)

    monkeypatch.setitem(SpectralKoopmanAttention.forward.__globals__, "spectral_koopman_attention", listening)
    with torch.no_grad():
        model(IDS[None], use_cache=False)
    monkeypatch.undo()
    for layer, call in zip(inspect_model(model, IDS).layers, given, strict=True):
        for name, expected in call.items():
            found = getattr(layer, name)
            assert (found is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(found, expected[0], atol=1e-6, rtol=0)
                assert found.shape == (LENGTH, 2)


def test_the_smallest_and_the_largest_eigenvalue_never_fall(model):
    for layer in inspect_model(model, IDS).layers:
        assert layer.gram_eigenvalues.diff(dim=0).min() > -1e-9  # all of them: Weyl, since each token adds x x^T
        assert layer.effective_rank.diff(dim=0).min() > -1e-9
        assert (layer.effective_rank <= layer.rank).all()


@pytest.mark.parametrize("segment_length", [2, 7, 149])
def test_segments_give_what_one_pass_gives(segment_length):
    for name in ("two layers", "refresh interval"):
        model = build(**MODELS[name])
        assert_same(inspect_model(model, IDS, segment_length=segment_length), inspect_model(model, IDS), 2e-4)


def test_the_model_is_left_as_it_was(model):
    model.train()
    before = [parameter.clone() for parameter in model.parameters()]
    seen = []
    inspect_model(model, IDS[None], progress=seen.append)
    assert seen[-1] == LENGTH
    assert model.training
    assert not any(mixer._forward_pre_hooks for mixer in model.model.mixers)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    model.eval()


def test_positions():
    assert measured_positions(1) == [1]
    assert measured_positions(20) == [1, 2, 3, 4, 6, 8, 11, 16, 20]
    assert len(measured_positions(1 << 20)) < 42
    layer = inspect_model(build(**MODELS["two layers"]), IDS, positions=[5]).layers[0]
    assert layer.positions.tolist() == [5, LENGTH]


def test_one_token():
    layer = inspect_model(build(**MODELS["two layers"]), IDS[:1]).layers[0]
    assert layer.positions.tolist() == [1]
    assert (layer.operator_eigenvalues == 0).all()


def test_warnings_name_heads_near_the_floor():
    model = build(**MODELS["two layers"])
    mixers = ska_layers(model)
    with torch.no_grad():
        for mixer in mixers.values():
            mixer.raw_ridge.fill_(1.0)
        assert inspect_model(model, IDS).warnings() == []
        mixers[1].raw_ridge[0] = -50  # softplus of it is 0: the floor holds
        mixers[2].raw_ridge[1] = float(torch.tensor(3 * RIDGE_FLOOR).expm1().log())
    first, second = inspect_model(model, IDS).warnings()
    assert first.startswith("layer 1, head 0: its ridge stands at the floor, 0.0005")
    assert second.startswith("layer 2, head 1: its ridge 0.0015 is near the floor")
    with torch.no_grad():
        mixers[1].qkv.k_proj.weight.zero_()
        mixers[1].raw_ridge[0] = 1.0
    layer = inspect_model(model, IDS).layers[0]
    assert layer.float32_digits.tolist() == pytest.approx([-np.log10(np.finfo(np.float32).eps)] * 2)  # ridge I


def test_what_is_refused():
    model = build(**MODELS["two layers"])
    with pytest.raises(ValueError, match="no SKA layer to inspect: its layers are mamba2"):
        inspect_model(build(layer_types=["mamba2"]), IDS)
    for ids in (IDS[:0], torch.stack([IDS, IDS])):
        with pytest.raises(ValueError, match="one row of at least one token"):
            inspect_model(model, ids)
    with pytest.raises(ValueError, match="segment_length must be at least 2"):
        inspect_model(model, IDS, segment_length=1)
    for positions in ([0], [LENGTH + 1]):
        with pytest.raises(ValueError, match=f"positions must be in 1 ... {LENGTH}"):
            inspect_model(model, IDS, positions=positions)
