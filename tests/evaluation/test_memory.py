import json

import pytest
import torch

from echo_ska.evaluation import memory
from echo_ska.evaluation.memory import StateBytes, compare_with_control, model_memory
from echo_ska.evaluation.memory_plot import draw_memory, format_bytes, format_tokens
from echo_ska.models import EchoForCausalLM
from echo_ska.models.presets import preset
from echo_ska.nn.mamba2 import Mamba2

SMALL = {"hidden_size": 32, "num_heads": 2, "rank": 4, "state_size": 4, "vocab_size": 16}
MIXED = {**SMALL, "num_hidden_layers": 5, "layer_types": ["mamba2", "ska", "attention", "ska", "mamba2"]}


@pytest.fixture
def mixed():
    return preset("echo-1m", **MIXED)


def test_the_slice_measures_what_the_whole_model_keeps(mixed):
    model = EchoForCausalLM(mixed).eval()
    with torch.no_grad():
        cache = model(torch.randint(16, (1, 37)), use_cache=True).past_key_values
    row = model_memory("mixed", mixed, [37]).rows[0]
    assert row.measured
    assert row.by_kind == cache.bytes_by_kind()
    assert row.total == cache.nbytes == model.state_bytes(37)


def test_measured_to_a_length_and_computed_beyond(mixed):
    rows = model_memory("mixed", mixed, [1000, 1, 300], measured_up_to=300).rows
    assert [(row.tokens, row.measured) for row in rows] == [(1, True), (300, True), (1000, False)]
    for kind in ("ska", "mamba2"):
        assert len({row.by_kind[kind] for row in rows}) == 1
    a_token = 2 * 32 * 4
    assert rows[2].by_kind["full_attention"] - rows[1].by_kind["full_attention"] == 700 * a_token


def test_a_formula_that_is_wrong_is_found(mixed, monkeypatch):
    monkeypatch.setattr(Mamba2, "state_bytes", lambda self, length: 1)
    with pytest.raises(ArithmeticError, match=r"after 8 tokens the live state of mixed has .* one of them is wrong"):
        model_memory("mixed", mixed, [8])


def test_half_precision_halves_the_kv_cache(mixed):
    full, half = (model_memory("mixed", mixed, [64], dtype=dtype).rows[0].by_kind for dtype in ("fp32", "bf16"))
    assert half["full_attention"] == pytest.approx(full["full_attention"] / 2, rel=0.01)
    assert half["ska"] > 0.8 * full["ska"]  # its sums stay float64


def test_a_preset_beside_its_twin():
    comparison = compare_with_control("echo-1m", [16, 1 << 20])
    assert [row.measured for row in comparison.model.rows] == [True, False]
    (_, _, first), (tokens, whole, part) = comparison.ratios()
    assert tokens == 1 << 20
    assert whole == comparison.control.rows[1].total / comparison.model.rows[1].total
    assert part > whole > 10_000
    assert part > first
    described = json.loads(json.dumps(comparison.to_json()))
    assert described["model"]["state_bytes"]["16"]["total"] == comparison.model.rows[0].total
    assert described["ratio"][str(1 << 20)] == whole


def test_a_model_without_ska_has_no_second_ratio():
    assert next(compare_with_control("echo-1m-ssm", [1024]).ratios())[2] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dtype": "fp8"}, "dtype must be one of fp32, bf16, got 'fp8'"), ({"lengths": [0]}, "at least 1, got 0")],
)
def test_what_is_refused(mixed, settings, message):
    with pytest.raises(ValueError, match=message):
        model_memory("mixed", mixed, **settings)
    with pytest.raises(ValueError, match="name echo-1m instead"):
        compare_with_control("echo-1m-ssm-attention")


def test_the_plot_is_a_png(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "preset", lambda name: preset(name, **SMALL))
    lengths = [16, 64, 1024, 1 << 20]
    draw_memory(
        [compare_with_control(name, lengths) for name in ("echo-1m", "echo-1m-paper-placement")], tmp_path / "m.png"
    )
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OSError, match="No such file"):
        draw_memory([compare_with_control("echo-1m", lengths)], tmp_path / "absent" / "m.png")


def test_figures_are_readable():
    assert [format_bytes(size) for size in (7, 999, 1000, 79_360, 999_600, 2_147_532_560)] == [
        "7 B", "999 B", "1.00 kB", "79.4 kB", "1.00 MB", "2.15 GB",
    ]  # fmt: skip
    assert [format_tokens(tokens) for tokens in (1000, 1024, 131_072, 1 << 20)] == ["1,000", "1k", "128k", "1M"]
    assert StateBytes(1, {"a": 2, "b": 3}, True).total == 5
