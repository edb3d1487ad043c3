"""Contexts as values: read, forked, saved, loaded and gone on from."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys

import context_models
import pytest
import torch
from context_models import KINDS, VOCAB, continuation, ids, tiny
from safetensors.torch import load_file
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from echo_ska import sealed
from echo_ska.memory import ContextState, encoding
from echo_ska.memory.token_ids import EMPTY_HASH, prefix_hashes
from echo_ska.models import EchoCache, EchoForCausalLM, preset
from echo_ska.nn.registry import MIXERS
from echo_ska.sealed import folder as sealed_folder


@pytest.fixture(params=KINDS)
def model(request):
    return tiny(**KINDS[request.param])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with SKA and the folder of a context that it has read."""
    model = tiny(ska_layers=[1])
    return model, ContextState.read(model, ids(30)).save(tmp_path_factory.mktemp("saved") / "state")


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def bytes_of(state):
    return {name: tensor.numpy().tobytes() for name, tensor in encoding.encode(state.cache()).items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("segment_length", [1, 7, 39, 4096])
def test_reading_gives_the_logits_of_the_whole_sequence(model, segment_length):
    tokens = ids(40)
    state = ContextState.read(model, tokens, segment_length=segment_length)
    with torch.no_grad():
        expected = model(tokens[None]).logits[0, -1]
    assert state.tokens == 40
    assert torch.allclose(state.logits(model), expected, atol=1e-3)
    assert torch.equal(state.logits(model), state.logits(model))


def test_a_parent_is_gone_on_from_and_stays_as_it_is(model):
    tokens = ids(50)
    parent = ContextState.read(model, tokens[:20])
    before, fork = bytes_of(parent), parent.fork()
    children = [ContextState.read(model, rest, parent, segment_length=9) for rest in (tokens[20:], ids(30, seed=5))]
    with torch.no_grad():
        expected = model(tokens[None]).logits[0, -1]
    assert torch.allclose(children[0].logits(model), expected, atol=1e-3)
    assert not torch.allclose(children[1].logits(model), expected, atol=1e-3)
    assert children[0].tokens == 50
    assert children[0].token_hash == ContextState.read(model, tokens).token_hash
    parent.generate(model, max_new_tokens=3)
    assert bytes_of(parent) == before
    for name, tensor in encoding.encode(fork._cache).items():
        tensor.zero_()
        assert bytes_of(parent)[name] == before[name]


DROPPING = {
    "num_hidden_layers": 4,
    "layer_types": ["mamba2", "ska", "ska", "mamba2"],
    "gate_dropout": 0.5,
    "mixer_dropout": [0.5, 0.5, 0.5, 0.0],
}


def test_a_model_in_training_mode_reads_what_it_reads_in_eval_mode():
    """Nothing is dropped at random from what is kept as the model's context; its mode is as it was afterwards."""
    model, tokens = tiny(**DROPPING), ids(40)
    parent = ContextState.read(model, tokens[:20], segment_length=5)
    expected = ContextState.read(model, tokens[20:], parent, segment_length=5)
    logits, text = expected.logits(model), expected.generate(model, max_new_tokens=8, do_sample=False)
    model.train()
    parent = ContextState.read(model, tokens[:20], segment_length=5)
    state = ContextState.read(model, tokens[20:], parent, segment_length=5)
    assert bytes_of(state) == bytes_of(expected)
    assert torch.equal(state.logits(model), logits)
    assert torch.equal(state.generate(model, max_new_tokens=8, do_sample=False), text)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("cut", [1, 2, 24, 29, 30])
def test_generating_equals_generating_from_all_tokens(model, cut):
    tokens = ids(30)[None]
    expected = model.generate(tokens, max_new_tokens=12, do_sample=False)
    state = ContextState.read(model, tokens[:, :cut])
    found = state.generate(model, tokens[:, cut:] if cut < 30 else None, max_new_tokens=12, do_sample=False)
    assert torch.equal(torch.cat([tokens[:, :cut], found], dim=1), expected)


class Collector(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], False

    def put(self, value):
        self.pieces.append(value.flatten())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("further", [0, 5])
def test_a_streamer_gets_what_is_returned_and_nothing_of_the_context(model, further):
    state, streamer = ContextState.read(model, ids(20)), Collector()
    more = ids(20 + further)[20:] if further else None
    found = state.generate(model, more, max_new_tokens=4, do_sample=False, streamer=streamer)
    assert streamer.ended
    assert torch.equal(torch.cat(streamer.pieces), found[0])
    assert len(streamer.pieces[0]) == further


def test_the_default_device_does_not_matter(model):
    tokens, more = ids(30), ids(3)
    expected = ContextState.read(model, tokens)
    with torch.device("meta"):
        state = ContextState.read(model, tokens[20:], ContextState.read(model, tokens[:20]))
        found = state.generate(model, more, max_new_tokens=4, do_sample=False)
        logits = state.logits(model)
    assert torch.allclose(logits, expected.logits(model), atol=1e-4)
    assert torch.equal(found, expected.generate(model, more, max_new_tokens=4, do_sample=False))


def test_beams_and_samples(model):
    tokens = ids(30)[None]
    state = ContextState.read(model, tokens[:, :20])
    for settings in ({"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}):
        settings |= {"max_new_tokens": 8, "do_sample": False}
        expected = model.generate(tokens, **settings)[:, 20:]
        assert torch.equal(state.generate(model, tokens[:, 20:], **settings), expected)
    torch.manual_seed(0)
    output = state.generate(
        model, max_new_tokens=8, do_sample=True, num_return_sequences=5, return_dict_in_generate=True
    )
    assert output.sequences.shape == (5, 8)
    assert len({tuple(row.tolist()) for row in output.sequences}) > 1


def test_a_generation_config_is_merged_with_the_models_own(model, monkeypatch):
    state, asked = ContextState.read(model, ids(20)), GenerationConfig(max_new_tokens=4, do_sample=True)
    expected = model.generate(ids(20)[None], max_new_tokens=4, do_sample=False)[:, 20:]
    own = model.generation_config
    merged = GenerationConfig(do_sample=True, num_return_sequences=3, use_cache=False)
    monkeypatch.setattr(model, "generation_config", merged)
    assert state.generate(model, generation_config=asked).shape == (3, 4)
    assert torch.equal(state.generate(model, max_new_tokens=4, num_return_sequences=1, do_sample=False), expected)
    for name in ("max_length", "min_length"):
        monkeypatch.setattr(model, "generation_config", GenerationConfig(**{name: 30}))
        with pytest.raises(ValueError, match=f"the model's generation_config has {name}: it would count"):
            state.generate(model, do_sample=False, **({"max_new_tokens": 4} if name == "min_length" else {}))
    monkeypatch.setattr(model, "generation_config", own)
    with pytest.raises(ValueError, match="takes no use_cache=False"):
        state.generate(model, generation_config=GenerationConfig(max_new_tokens=4, use_cache=False))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"past_key_values": 1}, "takes no past_key_values: the context is the past"),
        ({"attention_mask": torch.ones(1, 2)}, "takes no attention_mask"),
        ({"max_length": 9}, "takes no max_length: .* give max_new_tokens"),
        ({"use_cache": False}, "takes no use_cache=False"),
        (
            {"generation_config": GenerationConfig(max_length=9)},
            "takes no generation_config with max_length: .* give max",
        ),
    ],
)
def test_generate_refuses_what_contradicts_the_context(saved, settings, message):
    with pytest.raises(ValueError, match=message):
        ContextState.load(saved[1]).generate(saved[0], **settings)


def test_saved_and_loaded_in_a_new_process_it_goes_on_with_the_same_bits(tmp_path):
    expected = {}
    for kind, fields in KINDS.items():
        for tokens in (1, 2, 41):
            folder = tmp_path / f"{kind}-{tokens}"
            tiny(**fields).save_pretrained(folder / "model")
            # On some processors the last bits of a product depend on where the weights lie: in both processes as here.
            model = EchoForCausalLM.from_pretrained(folder / "model").eval()
            state = ContextState.read(model, ids(tokens), segment_length=16)
            expected[folder] = continuation(model, state)
            state.save(folder / "state")
            assert bytes_of(ContextState.load(folder / "state")) == bytes_of(state)
    subprocess.run([sys.executable, context_models.__file__, *map(str, expected)], check=True)
    for folder, continued in expected.items():
        assert_equal(load_file(folder / "continuation.safetensors"), continued)


def test_files_are_no_larger_than_the_state(model, tmp_path):
    state = ContextState.read(model, ids(200))
    folder = state.save(tmp_path / "state")
    assert sorted(path.name for path in folder.iterdir()) == ["context.json", "state.safetensors"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= state.nbytes + 65_536
    assert state.nbytes == model.state_bytes(199)
    kinds = {name.removeprefix("full_") for name in model.config.layer_types}
    assert state.bytes_by_kind().keys() == kinds
    assert sum(state.bytes_by_kind().values()) == state.nbytes


def test_only_a_kv_cache_grows_with_the_length(model):
    short, long = (ContextState.read(model, ids(length)).nbytes for length in (50, 400))
    assert (long > short) == ("full_attention" in model.config.layer_types)


def test_of_a_gram_matrix_a_triangle_is_written_and_all_of_it_restored():
    model = tiny(ska_layers=[1])
    state = ContextState.read(model, ids(100))
    gram = state._cache.layers[1].state.tensors()["recurrent.statistics.gram"]
    assert torch.equal(gram, gram.mT)
    tensors = encoding.encode(state._cache)
    assert tensors["layers.1.recurrent.statistics.gram_upper_bytes"].shape == (1, 2, 6 * 7 // 2, 6)
    assert not any(name.endswith("gram") for name in tensors)
    odd = torch.tensor([[-0.0, float("nan"), 3.0], [float("nan"), float("inf"), 1e-310], [3.0, 1e-310, -1.0]]).double()
    assert encoding.from_upper(encoding.to_upper(odd)).numpy().tobytes() == odd.numpy().tobytes()


def test_sums_are_kept_to_48_bits_and_a_float64_models_in_full():
    model = tiny(ska_layers=[1])
    tokens = ids(100)
    state = ContextState.read(model, tokens)
    with torch.no_grad():
        cache = model(tokens[None, :-1], use_cache=True).past_key_values
    for name, exact in cache.layers[1].state.compact().tensors().items():
        kept = state._cache.layers[1].state.tensors()[name]
        if exact.dtype is torch.float64 and "moment" in name:
            assert not torch.equal(kept, exact)
            assert torch.all((kept - exact).abs() <= 2.0**-37 * exact.abs() + 1e-12)
    in_full = ContextState.read(model.double(), tokens)
    sizes = {name: tensor.shape[-1] for name, tensor in encoding.encode(in_full._cache).items() if "moment" in name}
    assert set(sizes.values()) == {8}


@pytest.mark.parametrize(
    ("numbers", "size"),
    [
        ([0.1, -1e300, 5e-324, float("inf"), float("nan"), -0.0], 8),
        ([1.0, -(2.0**-1000), 1 + 2.0**-36], 6),
        ([1.0, -2.0, float("inf")], 2),
        ([0.0, 0.0], 1),
        ([], 1),
    ],
)
def test_trailing_zero_bytes_are_left_out_without_loss(numbers, size):
    numbers = torch.tensor(numbers, dtype=torch.float64)
    short = encoding.to_bytes(numbers)
    assert short.shape == (len(numbers), size)
    assert encoding.from_bytes(short).numpy().tobytes() == numbers.numpy().tobytes()


def test_sums_are_rounded_half_to_even():
    numbers = torch.tensor([1 + 2.0**-37, 1 + 3 * 2.0**-37, -1 - 2.0**-37 - 2.0**-52], dtype=torch.float64)
    assert encoding._rounded(numbers).tolist() == [1.0, 1 + 2.0**-35, -1 - 2.0**-36]


def test_the_ska_part_of_the_largest_preset_is_below_a_megabyte():
    config = preset("echo-180m")
    cache = EchoCache(config)
    torch.manual_seed(0)
    for layer, kind in zip(cache.layers, config.layer_types, strict=True):
        if kind == "ska":
            state = MIXERS[kind](config).init_state(1)
            layer.store(state.map(lambda tensor: (1e3 * torch.randn(tensor.shape)).to(tensor.dtype)), 100_000)
            for name, tensor in layer.state.tensors().items():
                if "moment" in name or "gram" in name:  # keys are float32 numbers, their sums are not
                    tensor.mul_(torch.pi)
    encoding.make_symmetric(cache)
    encoding.shorten(cache)
    assert sum(tensor.nbytes for tensor in encoding.encode(cache).values()) < 1_000_000


def test_it_goes_on_in_inference_mode_and_from_it(model):
    with torch.inference_mode():
        inside = ContextState.read(model, ids(20))
    outside = ContextState.read(model, ids(20))
    assert bytes_of(inside) == bytes_of(outside)
    expected = continuation(model, outside)
    assert_equal(continuation(model, inside), expected)
    with torch.inference_mode():
        assert_equal(continuation(model, outside), expected)


def test_no_call_reads_more_than_a_segment(saved):
    model, lengths = saved[0], []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    ContextState.read(model, ids(1000), segment_length=64)
    hook.remove()
    assert max(lengths) == 64
    assert sum(lengths) == 999


def test_progress_counts_to_the_end(saved):
    seen = []
    ContextState.read(saved[0], ids(10), segment_length=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (9, 10), (10, 10)]


@pytest.mark.parametrize(
    ("input_ids", "message"),
    [
        ([], r"at least one token, \[T\] or \[1, T\], got \[0\]"),
        (torch.zeros(2, 3, dtype=torch.long), r"one sequence .* got \[2, 3\]"),
        ([1.5], "must be integers, got torch.float32"),
        ([0, VOCAB], "must be from 0 to 49, the model's vocabulary, got 50"),
        ([-1], "got -1"),
    ],
)
def test_what_is_no_sequence_of_tokens_is_refused(saved, input_ids, message):
    with pytest.raises(ValueError, match=message):
        ContextState.read(saved[0], input_ids)


def test_a_model_without_states_is_refused():
    with pytest.raises(ValueError, match="has no state to keep"):
        ContextState.read(tiny(layer_types=["mamba2", "ska-paper", "mamba2"]), ids(3))


def test_the_hash_of_a_prefix_goes_on_from_itself():
    tokens = ids(40)
    hashes = prefix_hashes(tokens, [0, 7, 40])
    assert hashes[0] == EMPTY_HASH
    assert prefix_hashes(tokens[7:], [33], hashes[7])[33] == hashes[40]
    assert len({*hashes.values(), prefix_hashes(tokens.flip(0), [40])[40]}) == 4


def test_a_wrong_model_is_refused_and_the_difference_named(saved):
    model, folder = saved
    state = ContextState.load(folder, model)
    other = tiny(ska_layers=[1], rank=4, refresh_interval=8)
    for use in (
        lambda: ContextState.load(folder, other),
        lambda: state.logits(other),
        lambda: state.generate(other, max_new_tokens=1),
        lambda: ContextState.read(other, ids(3), state),
    ):
        with pytest.raises(
            ValueError, match=r"another model: rank 6 there, 4 here; refresh_interval None there, 8 here"
        ):
            use()
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.lm_head.weight[3, 3] += 1
    with pytest.raises(ValueError, match=r"the same configuration, other parameters .* read the tokens anew"):
        state.logits(trained)
    with pytest.raises(ValueError, match="dtype float32 there, bfloat16 here"):
        state.logits(copy.deepcopy(model).to(torch.bfloat16))


@pytest.mark.parametrize("name", ["context.json", "state.safetensors"])
def test_a_byte_changed_anywhere_is_refused(saved, tmp_path, name):
    folder = copy_of(saved[1], tmp_path)
    path = folder / name
    whole = path.read_bytes()
    assert len(whole) < 16_384  # else a sample would have to do
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"^the context .* is damaged \(.* checksum\): delete it and make it anew$"
        ):
            ContextState.load(folder)
    path.write_bytes(whole)
    ContextState.load(folder)


@pytest.mark.parametrize("name", ["context.json", "state.safetensors"])
def test_what_is_cut_off_longer_or_missing_is_refused(saved, tmp_path, name):
    folder = copy_of(saved[1], tmp_path)
    path = folder / name
    whole = path.read_bytes()
    for data in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], whole + b"\n", b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is damaged"):
            ContextState.load(folder)
    path.unlink()
    with pytest.raises(ValueError, match=rf"is damaged \({name} is missing\)"):
        ContextState.load(folder)
    with pytest.raises(ValueError, match="there is no context at"):
        ContextState.load(tmp_path / "nowhere")


def test_nothing_is_unpickled(saved, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    folder = copy_of(saved[1], tmp_path)
    description = json.loads((folder / "context.json").read_bytes())
    (folder / "state.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="does not match its checksum"):
        ContextState.load(folder)
    # Even if whoever renamed it has sealed it.
    description["tensors"]["sha256"] = sealed.digest(folder / "state.safetensors")
    del description["checksum"]
    (folder / "context.json").write_bytes(sealed_folder._encoded(description))
    with pytest.raises(ValueError, match="is damaged"):
        ContextState.load(folder)
    (folder / "context.json").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is damaged"):
        ContextState.load(folder)
    assert not (tmp_path / "sprung").exists()


def test_another_format_and_other_contents_are_refused(saved, tmp_path):
    _, folder = saved
    description = json.loads((folder / "context.json").read_bytes())
    for changes, message in (
        ({"format": 3}, "has format 3 and this version of echo-ska reads format 2"),
        ({"tokens": 1}, "cannot be understood: it holds tensors that its model has no place for"),
        ({"tokens": "many"}, "cannot be understood"),
        ({"model": description["model"] | {"rank": 5}}, r"its layers.1.* is \[.*\], not \[.*\]"),
    ):
        tensors = load_file(folder / "state.safetensors")
        sealed.write_sealed_folder(tmp_path / message[:9], tensors, {**description, **changes}, "context")
        with pytest.raises(ValueError, match=message):
            ContextState.load(tmp_path / message[:9])
        shutil.rmtree(tmp_path / message[:9])


def test_nothing_is_overwritten_and_nothing_left_half(saved, tmp_path):
    _, folder = saved
    state = ContextState.load(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="exists: save to another path, or delete it first"):
        state.save(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="could not be written: Not a directory"):
        state.save(tmp_path / "file" / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_context_can_be_pickled(saved):
    model, folder = saved[0], saved[1]
    state = ContextState.load(folder)
    again = pickle.loads(pickle.dumps(state))
    assert repr(again) == repr(state)
    assert torch.equal(again.logits(model), state.logits(model))
