import pytest

from echo_ska.models import EchoConfig, EchoForCausalLM, presets
from echo_ska.models.presets import PRESETS, build_on_meta, count_parameters, find_preset, preset

FAMILIES = {"echo-1m": 0.94e6, "echo-50m": 50e6, "echo-180m": 180e6, "echo-1b": 1e9}
SMALL = {"hidden_size": 32, "num_heads": 2, "rank": 4, "state_size": 4}


@pytest.mark.parametrize(("family", "size"), FAMILIES.items())
def test_sizes_are_near_their_names_and_twins_near_their_echo(family, size):
    echo = count_parameters(preset(family))
    assert echo == pytest.approx(size, rel=0.03)
    twins = [name for name, entry in PRESETS.items() if entry.family == family and name != family]
    assert {f"{family}-ssm", f"{family}-ssm-attention"} <= set(twins)
    for twin in twins:
        assert count_parameters(preset(twin)) == pytest.approx(echo, rel=0.01)


def test_the_table_says_what_is_counted():
    table = [row.strip("| ").split(" | ") for row in presets.__doc__.splitlines() if row.startswith("| echo")]
    assert [row[0] for row in table] == list(FAMILIES)
    for name, layers, width, ska, _, state, _, vocabulary, parameters in table:
        config = preset(name)
        numbers = (config.num_hidden_layers, config.hidden_size, config.state_size, config.vocab_size)
        assert numbers == tuple(int(cell.replace(",", "")) for cell in (layers, width, state, vocabulary))
        assert [int(cell) for cell in ska.split(", ")] == [
            index for index, kind in enumerate(config.layer_types) if kind == "ska"
        ]
        assert float(parameters.removesuffix(" M")) == pytest.approx(count_parameters(config) / 1e6, abs=0.05)


def test_the_sizes_of_the_method():
    for name, layers, rank, heads in (
        ("echo-1m", [1, 2], 24, 4),
        ("echo-50m", [3, 7, 11], 56, 7),
        ("echo-180m", [8, 16], 48, 12),
        ("echo-1b", [5, 10, 15], 48, 32),
    ):
        config = preset(name)
        assert [index for index, kind in enumerate(config.layer_types) if kind == "ska"] == layers
        assert (config.rank, config.num_heads) == (rank, heads)
    assert preset("echo-1m-paper-placement").layer_types == ["mamba2", "mamba2", "ska", "ska"]


def test_twins_differ_in_ska_layers_alone():
    echo = preset("echo-180m").layer_types
    for suffix, other in (("ssm", "mamba2"), ("ssm-attention", "full_attention")):
        assert preset(f"echo-180m-{suffix}").layer_types == [other if kind == "ska" else kind for kind in echo]


def test_the_180m_state_by_kind():
    model = build_on_meta(preset("echo-180m"))
    sizes = dict.fromkeys(model.config.layer_types, 0)
    for kind, block in zip(model.config.layer_types, model.model.layers, strict=True):
        sizes[kind] += block.mixer.state_bytes(1 << 20)
    numbers = 2 * 12 * (2 * 48**2 + 64 * 48 + 2 * 48)  # layers, heads, and method.md's formula with two keys
    tails = 2 * 3 * 12 * (48 + 48 + 64)
    assert 4 * (numbers + tails) < 1e6  # SKA's part, counted in float32
    assert 8 * numbers + 4 * tails <= sizes["ska"] < 8 * numbers + 4 * tails + 100  # its sums are float64
    assert sizes["mamba2"] == pytest.approx(9.1e6, rel=0.01)


def test_counted_on_meta_equals_the_real_model():
    config = preset("echo-1m")
    assert count_parameters(config) == sum(p.numel() for p in EchoForCausalLM(config).parameters())


def test_overrides_keep_twins_matched():
    for name in ("echo-1m-ssm", "echo-1m-ssm-attention"):
        assert count_parameters(preset(name, **SMALL)) == pytest.approx(
            count_parameters(preset("echo-1m", **SMALL)), rel=0.01
        )
    moved = preset("echo-1m-ssm-attention", ska_layers=[2])
    assert moved.layer_types == ["mamba2", "mamba2", "full_attention", "mamba2"]
    assert preset("echo-1m", layer_types=["mamba2", "ska", "attention", "mamba2"]).layer_types[2] == "full_attention"


def test_a_width_of_its_own_is_kept():
    assert preset("echo-1m-ssm", intermediate_size=100).intermediate_size == 100
    assert preset("echo-1m", intermediate_size=100).intermediate_size == 100


def test_it_is_a_configuration():
    assert isinstance(preset("echo-1m"), EchoConfig)
    assert find_preset("echo-1m-ssm").control == "echo-1m-ssm-attention"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("echo-2m", {}, r"no preset 'echo-2m': choose from echo-1m, echo-1m-ssm, "),
        ("echo-1m", {"wibble": 3}, "EchoConfig has no field wibble"),
        ("echo-1m-ssm", {"feed_forward": "none"}, "no feed-forward layers to match"),
        ("echo-1m-ssm", {"rank": 1, "head_dim": 1, "expand": 20}, "cannot have the .* parameters of its Echo"),
    ],
)
def test_what_is_refused(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        preset(name, **overrides)
