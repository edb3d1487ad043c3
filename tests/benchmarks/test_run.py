"""One run from the gate to the record, its tables and its picture, at sizes that take no time."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

from echo_ska.benchmarks import clock, decoding, memory, training
from echo_ska.benchmarks.decoders import DECODERS, random_state, state_bytes
from echo_ska.benchmarks.decoding import grow
from echo_ska.benchmarks.plan import Plan, Sizes
from echo_ska.benchmarks.run import run_benchmark
from echo_ska.benchmarks.sources import Source
from echo_ska.benchmarks.summary import TABLES, picture_name, rows_of, seconds_text
from echo_ska.experiments import tables
from echo_ska.experiments.benchmark_figure import draw
from echo_ska.training.records import append, read

SIZES = Sizes(heads=2, rank=4, head_dim=6, refresh_interval=8, state_size=4)
PLAN = Plan(
    name="own",
    routes=("ska", "ska-chunk-causal", "softmax", "linear", "mamba2"),
    lengths=(8, 16),
    memory_lengths=(16,),
    layer_lengths=(8,),
    gate_lengths=(9, 20),
    prefill=(24, 8),
    contexts=(8, 16),
    decode_tokens=20,
    rounds=2,
    sizes=SIZES,
)


@pytest.fixture(scope="module")
def record():
    # One process stands for all: each takes seconds to start, and `test_memory_is_measured_in_a_process` starts one.
    patch = pytest.MonkeyPatch()
    patch.setattr(training, "peak_memory", lambda *arguments: 1000)
    patch.setattr("echo_ska.benchmarks.run.measure_growth", lambda plan: grow(plan.decode_tokens, plan.sizes, "cpu"))
    said: list[str] = []
    result = run_benchmark(PLAN, said.append)
    patch.undo()
    assert any("8 tokens" in sentence for sentence in said)
    return result


@pytest.mark.parametrize("when", ["the gate: decoding", "forward and backward over 16"])
def test_what_was_measured_before_ctrl_c_is_kept(when, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "peak_memory", lambda *arguments: 1000)

    def say(sentence: str) -> None:
        if sentence.startswith(when):
            raise KeyboardInterrupt

    stopped = run_benchmark(dataclasses.replace(PLAN, name="full", routes=("ska", "softmax")), say)
    assert stopped.configuration["name"] == "own"  # which no claim reads
    (note,) = stopped.figures["notes"]
    assert note.startswith("stopped by Ctrl-C after")
    assert stopped.figures["stopped"] is True
    assert set(stopped.figures["training"]["ska"]) == ({"8", "16"} if "decoding" in when else {"8"})
    assert "decoding" not in stopped.figures
    rows = {name: rows_of(name, stopped) for name in TABLES}
    assert rows["training"]
    assert not rows["layers"]
    assert draw(stopped, tmp_path / "bench.png")


def test_everything_is_measured(record):
    figures = record.figures
    assert figures["notes"] == []
    for name in PLAN.routes:
        assert set(figures["training"][name]) == {"8", "16"}
        assert set(figures["training"][name]["8"]) == {"forward", "forward_backward"}
        assert all(len(samples) == 2 for samples in figures["training"][name]["16"].values())
        assert figures["memory"][name] == {"16": 1000}
        assert figures["routes"][name]["operations"]["16"]["forward"] > 0
    assert set(figures["prefill"]) == set(PLAN.routes)
    assert set(figures["decoding"]) == set(DECODERS) - {"ska-power-0"}
    assert all({"8", "16"} < set(row) for row in figures["decoding"].values())
    assert set(figures["layers"]) >= {"ska", "softmax", "mamba2", "mamba2-transformers-64"}
    assert figures["growth"]["tokens"] == 20
    assert set(figures["growth"]["token_seconds"]) == {"20"}
    assert figures["growth"]["error"] < 1e-5
    assert set(figures["peak"]) == {"float32", "float64"}
    assert record.configuration["sizes"]["rank"] == 4


def test_the_record_is_one_line_and_reads_back(record, tmp_path):
    append(record, tmp_path / "bench.jsonl")
    assert len((tmp_path / "bench.jsonl").read_text().splitlines()) == 1
    assert read(tmp_path / "bench.jsonl") == [record]


def test_every_table_has_a_row_a_route(record):
    for name in TABLES:
        rows = rows_of(name, record)
        assert len({len(row) for row in rows}) == 1, name
        assert len(rows) > 1, name
    assert len(rows_of("training", record)) == 1 + len(PLAN.routes)
    softmax = next(row for row in rows_of("training", record) if row[0] == "softmax attention")
    assert all(cell.endswith("(1x)") for cell in softmax[1:])


def test_tables_without_figures_are_left_out(record):
    bare = dataclasses.replace(record, figures=record.figures | {"training": {}, "memory": {}, "growth": None})
    assert (
        rows_of("training", bare) == rows_of("share", bare) == rows_of("memory", bare) == rows_of("growth", bare) == []
    )


def test_the_picture(record, tmp_path):
    assert draw(record, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert draw(dataclasses.replace(record, figures=record.figures | {"decoding": {}}), tmp_path / "half.png")
    nothing = dataclasses.replace(record, figures=record.figures | {"decoding": {}, "training": {}})
    assert not draw(nothing, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_pages_tables_take_the_newest_full_run(record, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    page = "<!-- table: bench-training -->\n<!-- end -->\n<!-- table: bench-gpu-machine -->\n<!-- end -->\n"
    assert tables.fill(page).count("Not recorded yet.") == 2
    append(record, tmp_path / "bench.jsonl")
    assert tables.fill(page).count("Not recorded yet.") == 2
    full = dataclasses.replace(record, configuration=record.configuration | {"name": "full"})
    append(full, tmp_path / "bench.jsonl")
    assert "| softmax attention |" in tables.fill(page)
    assert picture_name(full) == "bench.png"
    assert picture_name(record) == "bench-own.png"


def test_what_would_take_too_long_is_left_out_and_named():
    plan = dataclasses.replace(PLAN, parts=("training", "prefill"), routes=("softmax",), seconds_per_call=1e-9)
    record = run_benchmark(plan)
    assert set(record.figures["training"]["softmax"]) == {"8"}
    assert record.figures["prefill"] == {}
    first, second = record.figures["notes"]
    assert first.startswith("softmax attention at 16 tokens: left out, expected to take")
    assert "24 tokens to read: left out" in second


def test_what_would_not_fit_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(training, "peak_memory", lambda *arguments: 600)
    monkeypatch.setattr(training, "available_bytes", lambda device: 1000)
    monkeypatch.setattr("echo_ska.benchmarks.decoding.available_bytes", lambda device: 1000)
    parts = ("training", "memory", "decoding")
    plan = dataclasses.replace(PLAN, parts=parts, routes=("softmax",), memory_lengths=(8,), decode_tokens=0)
    record = run_benchmark(plan)
    assert set(record.figures["training"]["softmax"]) == {"8"}
    assert set(record.figures["decoding"]["softmax"]) == {"label"}
    assert sum("left out" in note for note in record.figures["notes"]) == 5


def test_memory_is_measured_in_a_process_of_its_own(monkeypatch):
    tokens = 8192  # enough that no memory left over from imports holds it
    found = memory.peak_memory("softmax", tokens, SIZES, "cpu", threads=1, timeout=120)
    output_and_gradients = 4 * tokens * SIZES.heads * SIZES.head_dim * 4
    assert output_and_gradients / 2 < found < 200e6


def test_a_process_without_a_figure_is_one_sentence():
    with pytest.raises(memory.ChildError, match=r"exit code 1: .*No module named"):
        memory.ask_child("echo_ska.benchmarks.nothing", {}, timeout=120)
    with pytest.raises(memory.ChildError, match="took longer than 0 s"):
        memory.ask_child("echo_ska.benchmarks.nothing", {}, timeout=1e-3)


def test_resident_memory_is_seen_to_grow():
    before = memory.resident_bytes()
    block = torch.ones(16_000_000)
    assert memory.resident_bytes() - before > 32e6
    del block
    assert (memory.available_bytes("cpu") or 1) > 0


def test_freed_memory_is_given_back_before_a_call_is_measured(monkeypatch):
    torch.ones(7_000_000)  # from here on blocks that are smaller come from the heap, which keeps what is freed
    blocks = [torch.ones(1_000_000) for _ in range(40)]
    held = memory.resident_bytes()
    last = blocks.pop()  # the heap cannot shrink below it
    blocks.clear()
    if memory.give_back_pages():  # Linux with glibc
        assert held - memory.resident_bytes() > 120e6
    assert last.sum() == 1_000_000

    events = []
    monkeypatch.setattr(memory, "give_back_pages", lambda: events.append("give back"))
    monkeypatch.setattr(memory, "resident_bytes", lambda: events.append("resident") or 0)
    monkeypatch.setattr(memory, "train_step", lambda *_: events.append("call"))
    memory.measure_here("softmax", 16, SIZES, "cpu")
    assert events == ["call", "give back", "resident", "call"]


def test_a_fabricated_context_has_its_length():
    state = random_state(8192 * 2 + 24, SIZES, Source(torch.float32, "cpu"), 8)
    assert int(state.position) == int(state.statistics.count) == 8192 * 2 + 24
    # Keys have unit norm, so the Gram matrix's trace counts tokens.
    trace = state.statistics.gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(trace, torch.full_like(trace, 8192 * 2 + 24), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="no multiple of the refresh_interval 8"):
        random_state(9, SIZES, Source(torch.float32, "cpu"), 8)


def test_a_cache_counts_its_context_alone():
    for name in ("softmax", "softmax-products"):
        decoder = DECODERS[name](SIZES, "cpu")
        cache = decoder.fabricate(100, Source(torch.float32, "cpu"))
        assert state_bytes(cache) == 2 * 100 * SIZES.heads * SIZES.head_dim * 4
        assert decoder.cache_bytes is not None
        assert decoder.cache_bytes(100) == state_bytes(cache)


def test_many_tokens_in_a_row_are_timed_with_the_devices_work(monkeypatch):
    """A GPU returns before it has decoded: the clock is read only after it was waited for."""
    events = []
    read_clock = clock.time.perf_counter
    monkeypatch.setattr(decoding, "wait", lambda device: events.append(f"wait for {device}"))
    monkeypatch.setattr(clock.time, "perf_counter", lambda: events.append("clock") or read_clock())
    found = grow(30, SIZES, "cpu")
    monkeypatch.undo()
    assert set(found["token_seconds"]) == {"30"}
    assert events == ["wait for cpu", "clock"] * (1 + 10 + 1)  # before the first token, after ten blocks, after all


def test_calls_take_turns(monkeypatch):
    order: list[str] = []
    now = itertools.count()
    monkeypatch.setattr(clock.time, "perf_counter", lambda: float(next(now)))
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    slow = dict.fromkeys(calls, 100.0)
    found = clock.interleaved(calls, rounds=3, budget=1e9, device="cpu", expected=slow)
    assert "".join(order) == "abcbcacab"
    assert found == {"a": [1.0] * 3, "b": [1.0] * 3, "c": [1.0] * 3}
    assert all(len(samples) == 1 for samples in clock.interleaved(calls, rounds=3, budget=1, device="cpu").values())


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("device must be cpu or cuda, got 'abacus'", {"device": "abacus"}),
        ("threads must be at least 1, got 0", {"threads": 0}),
        ("no part 'x': choose from training", {"parts": ("x",)}),
        ("lengths must ascend, got 16, 8", {"lengths": (16, 8)}),
        ("lengths must be numbers of tokens, at least 1 each", {"lengths": ()}),
        ("decode_tokens must be at least 0", {"decode_tokens": -1}),
    ],
)
def test_a_plan_that_cannot_be_followed(words, changes):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(PLAN, **changes).check()


def test_times_have_three_digits():
    said = [seconds_text(seconds) for seconds in (4.012e-5, 0.0123, 0.99999, 4.561, 123.4)]
    assert said == ["40.1 us", "12.3 ms", "1.00 s", "4.56 s", "123 s"]
    assert seconds_text(0.01, round_number=True) == "10 ms"


def test_plans_are_json():
    assert json.loads(json.dumps(dataclasses.asdict(Plan.full("cpu", 2))))["lengths"][-1] == 65_536
