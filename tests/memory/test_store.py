"""A store of contexts: the longest prefix, several processes, sudden deaths, damage, and a full disk."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback

import pytest
import torch
from context_models import KINDS, ids, tiny

from echo_ska.memory import ContextState, ContextStore
from echo_ska.memory.index import ContextIndex
from echo_ska.memory.store import is_store
from echo_ska.memory.token_ids import token_ids


@pytest.fixture(scope="module")
def model():
    return tiny(ska_layers=[1])


@pytest.fixture
def store(tmp_path):
    return ContextStore(tmp_path / "store")


def contexts(model, count, length=6):
    """Contexts of different tokens."""
    return [ContextState.read(model, token_ids(ids(length, seed=100 + n), 50)) for n in range(count)]


def in_child(function):
    """Run in a fork of this process, which ends with 0 if nothing was raised; its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def wait_for(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def folder_of(store, entry):
    return store.folder / "states" / entry.name


def assert_clean(store):
    """The folder holds what the index says and nothing else, and every context in it is whole."""
    entries = store.list()
    assert {path.name for path in (store.folder / "states").iterdir()} == {entry.name for entry in entries}
    assert list((store.folder / "work").iterdir()) == []
    for entry in entries:
        state = ContextState.load(folder_of(store, entry))
        assert (state.fingerprint, state.tokens, state.token_hash) == (
            entry.fingerprint,
            entry.tokens,
            entry.token_hash,
        )
    assert store.nbytes == sum(path.stat().st_size for path in (store.folder / "states").glob("*/*"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_stored_prefix_is_found(store, kind):
    model, tokens = tiny(**KINDS[kind]), ids(60)
    for length in (10, 40, 25):
        store.put(ContextState.read(model, tokens[:length]))
    store.put(ContextState.read(model, ids(50, seed=9)))
    store.put(ContextState.read(tiny(seed=1, **KINDS[kind]), tokens[:50]))
    for length, expected in ((60, 40), (41, 40), (40, 40), (39, 25), (25, 25), (24, 10), (10, 10)):
        state, known = store.find(model, tokens[:length])
        assert known == state.tokens == expected
        assert torch.equal(state.logits(model), ContextState.read(model, tokens[:expected]).logits(model))
    assert store.find(model, tokens[:9]) is None
    assert store.find(model, torch.cat([ids(1, seed=3), tokens])) is None
    assert_clean(store)


def test_what_is_stored_is_not_read_again(store, model):
    tokens, seen = ids(60), []
    first = store.read(model, tokens[:40])
    again = store.read(model, tokens[:40], progress=lambda *counts: seen.append(counts))
    assert seen == []
    assert torch.equal(first.logits(model), again.logits(model))
    longer = store.read(model, tokens[None], segment_length=8, progress=lambda *counts: seen.append(counts))
    assert seen == [(8, 20), (16, 20), (20, 20)]
    assert torch.equal(
        longer.logits(model), ContextState.read(model, tokens[40:], first, segment_length=8).logits(model)
    )
    assert [entry.tokens for entry in store.list()] == [60, 40]
    assert_clean(store)


def test_a_context_is_kept_once_and_removed(store, model):
    state = ContextState.read(model, ids(20))
    entry = store.put(state)
    assert store.put(state.fork()) == entry
    assert len(store.list()) == 1
    assert store.nbytes == entry.nbytes <= state.nbytes + 65_536
    store.remove(entry)
    assert store.list() == []
    assert store.find(model, ids(20)) is None
    with pytest.raises(ValueError, match=r"holds no context .*: see list\(\)"):
        store.remove(entry.name)
    assert_clean(store)


def test_the_least_recently_used_are_evicted(tmp_path, model):
    states = contexts(model, 5)
    size = ContextStore(tmp_path / "one").put(states[0]).nbytes
    store = ContextStore(tmp_path / "store", max_bytes=3 * size + 100)
    for n in (0, 1, 2):
        store.put(states[n])
    assert store.find(model, ids(6, seed=100)) is not None  # 0 is used again
    store.put(states[3])
    hashes = [entry.token_hash for entry in store.list()]
    assert hashes == [states[n].token_hash for n in (3, 0, 2)]
    store.put(states[2])
    store.put(states[4])
    assert [entry.token_hash for entry in store.list()] == [states[n].token_hash for n in (4, 2, 3)]
    assert store.nbytes <= store.max_bytes
    assert_clean(store)
    with pytest.raises(ValueError, match="more than the store's max_bytes = 100"):
        ContextStore(tmp_path / "store", max_bytes=100).put(states[0])
    with pytest.raises(ValueError, match="max_bytes must be at least 1"):
        ContextStore(tmp_path / "store", max_bytes=0)
    assert_clean(store)


def test_a_store_opened_with_less_room_deletes_what_is_beyond_it(tmp_path, model):
    states, store = contexts(model, 4), ContextStore(tmp_path / "store")
    size = max(store.put(state).nbytes for state in states)
    again = ContextStore(tmp_path / "store", max_bytes=2 * size + 100)
    assert [entry.token_hash for entry in again.list()] == [states[n].token_hash for n in (3, 2)]
    assert_clean(again)
    again.max_bytes = size + 100
    again.sweep()
    assert len(again.list()) == 1
    assert_clean(again)


def test_a_context_too_large_to_keep_is_read_all_the_same(tmp_path, model, caplog):
    store = ContextStore(tmp_path / "store", max_bytes=100)
    assert store.read(model, ids(20)).tokens == 20
    assert "more than the store's max_bytes = 100" in caplog.text
    assert_clean(store)


@pytest.mark.parametrize("name", ["context.json", "state.safetensors"])
@pytest.mark.parametrize("harm", ["flip", "cut off", "delete", "delete the folder"])
def test_a_damaged_context_is_reported_removed_and_read_anew(store, model, caplog, name, harm):
    tokens = ids(30)
    store.read(model, tokens[:10])
    entry = store.put(ContextState.read(model, tokens))
    path = folder_of(store, entry) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    if harm == "delete the folder":
        shutil.rmtree(path.parent)
    elif harm == "delete":
        path.unlink()
    else:
        path.write_bytes(data if harm == "flip" else data[:-1])
    with caplog.at_level(logging.WARNING):
        assert store.find(model, tokens)[1] == 10
    assert "removed a stored context of 30 tokens" in caplog.text
    assert [found.tokens for found in store.list()] == [10]
    assert_clean(store)
    state = store.read(model, tokens)
    assert torch.equal(state.logits(model), store.find(model, tokens)[0].logits(model))
    assert_clean(store)


def test_storing_a_damaged_context_again_mends_it(store, model):
    state = ContextState.read(model, ids(30))
    path = folder_of(store, store.put(state)) / "state.safetensors"
    path.write_bytes(b"nothing")
    store.put(state)
    assert store.find(model, ids(30))[1] == 30
    assert_clean(store)


def test_a_context_that_is_not_what_the_index_says_is_not_used(store, model):
    entries = [store.put(state) for state in contexts(model, 2)]
    shutil.rmtree(folder_of(store, entries[0]))
    shutil.copytree(folder_of(store, entries[1]), folder_of(store, entries[0]))
    assert store.find(model, ids(6, seed=100)) is None
    assert store.find(model, ids(6, seed=101))[1] == 6


@pytest.mark.parametrize("harm", ["delete", "empty", "noise", "cut off", "flip"])
def test_a_damaged_index_is_made_anew_from_the_contexts(store, model, harm):
    states = contexts(model, 4)
    for state in states:
        store.put(state)
    path = store.folder / "index.sqlite3"
    whole = path.read_bytes()
    if harm == "delete":
        path.unlink()
    else:
        flipped = bytearray(whole)
        flipped[20] ^= 0xFF
        path.write_bytes({"empty": b"", "noise": b"x" * 5000, "cut off": whole[:5000], "flip": flipped}[harm])
    store = ContextStore(store.folder)
    assert {entry.token_hash for entry in store.list()} == {state.token_hash for state in states}
    assert_clean(store)
    store.put(ContextState.read(model, ids(9)))
    assert store.find(model, ids(9))[1] == 9


def test_the_order_of_use_outlives_the_index(store, model):
    states = contexts(model, 3)
    entries = [store.put(state) for state in states]
    os.utime(store.folder / "states" / entries[2].name, (1e9, 1e9))
    began = time.time()
    assert store.find(model, ids(6, seed=100)) is not None  # 0 is used again
    assert began - 1 < store.last_used(entries[0]) < began + 60
    assert store.last_used(entries[2]) == 1e9
    (store.folder / "index.sqlite3").unlink()
    found = [entry.token_hash for entry in ContextStore(store.folder).list()]
    assert found == [states[n].token_hash for n in (0, 1, 2)]
    store.remove(entries[1].name)
    with pytest.raises(FileNotFoundError):
        store.last_used(entries[1])


@pytest.mark.parametrize("harm", ["delete", "noise"])
def test_an_index_that_is_lost_under_an_open_store_is_made_anew(store, model, harm, caplog):
    store.put(ContextState.read(model, ids(9)))
    path = store.folder / "index.sqlite3"
    path.unlink() if harm == "delete" else path.write_bytes(b"x" * 5000)
    store.put(ContextState.read(model, ids(12)))
    assert [entry.tokens for entry in store.list()] == [12, 9]
    path.unlink() if harm == "delete" else path.write_bytes(b"x" * 5000)
    assert store.find(model, ids(20))[1] == 12
    assert_clean(store)
    if harm == "noise":
        assert "is made anew from the stored contexts" in caplog.text


def damage_part(store, part):
    """Overwrite the first page of one of the index's trees; the others can still be read."""
    with store._index.connection() as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (part,)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with (store.folder / "index.sqlite3").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"x" * size)


@pytest.mark.parametrize("part", ["contexts", "by_model", "by_use", "sqlite_autoindex_contexts_1"])
def test_an_index_damaged_in_part_under_an_open_store_is_made_anew(store, model, part):
    kept = [store.put(state) for state in contexts(model, 3)]
    damage_part(store, part)
    assert store.find(model, ids(6, seed=101))[1] == 6
    damage_part(store, part)
    again, new = contexts(model, 4)[2:]
    assert store.put(again).name == kept[2].name
    damage_part(store, part)
    store.put(new)
    damage_part(store, part)
    assert len(store.list()) == 4
    damage_part(store, part)
    store.remove(kept[0].name)
    damage_part(store, part)
    store.sweep()
    assert {entry.name for entry in store.list()} >= {kept[1].name, kept[2].name}
    assert len(store.list()) == 3
    assert_clean(store)


@pytest.mark.parametrize("part", ["contexts", "by_model", "by_use", "sqlite_autoindex_contexts_1"])
def test_damage_in_the_index_and_in_a_context_at_once_is_mended(store, model, part):
    tokens = ids(30)
    short, long = (ContextState.read(model, tokens[:length]) for length in (10, 30))
    store.put(short)
    entry = store.put(long)
    for call, expected in ((lambda: store.find(model, tokens)[1], 10), (lambda: store.put(long).tokens, 30)):
        (folder_of(store, entry) / "state.safetensors").write_bytes(b"nothing")
        damage_part(store, part)
        assert call() == expected
        assert_clean(store)
        store.put(long)
    assert store.find(model, tokens)[1] == 30


def test_no_flipped_byte_of_the_index_gives_a_wrong_context(tmp_path, model):
    store = ContextStore(tmp_path / "store")
    states = contexts(model, 3)
    for state in states:
        store.put(state)
    index = (store.folder / "index.sqlite3").read_bytes()
    used = [n for n in range(len(index)) if index[n]]
    for position in random.Random(0).sample(used, 60):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(store.folder, tmp_path / "copy")
        data = bytearray(index)
        data[position] ^= 1 << position % 8
        (tmp_path / "copy" / "index.sqlite3").write_bytes(data)
        damaged = ContextStore(tmp_path / "copy")
        for n, state in enumerate(states):
            found = damaged.find(model, ids(6, seed=100 + n))
            assert found is None or found[0].token_hash == state.token_hash
        damaged.read(model, ids(6, seed=100))
        assert damaged.find(model, ids(6, seed=100))[1] == 6


def test_two_processes_write_at_once(store, model):
    states = contexts(model, 40)

    def write(order):
        own = ContextStore(store.folder)
        for state in order:
            own.put(state)
            assert own.find(model, ids(3)) is None

    children = [in_child(lambda order=order: write(order)) for order in (states[:30], states[39:9:-1])]
    assert [wait_for(child) for child in children] == [0, 0]
    assert len(store.list()) == 40
    assert_clean(store)


def test_two_processes_write_evict_and_remove_at_once(store, model):
    states = contexts(model, 12)
    limit = 4 * store.put(states[0]).nbytes

    def write(seed):
        own, chance = ContextStore(store.folder, max_bytes=limit), random.Random(seed)
        for _ in range(60):
            number = chance.randrange(12)
            own.put(states[number])
            found = own.find(model, ids(6, seed=100 + number))  # it may have been evicted, but is never wrong
            assert found is None or found[0].token_hash == states[number].token_hash
            if chance.random() < 0.2:
                with contextlib.suppress(ValueError, IndexError):  # the other one was faster
                    own.remove(chance.choice(own.list()))

    children = [in_child(lambda seed=seed: write(seed)) for seed in (1, 2)]
    assert [wait_for(child) for child in children] == [0, 0]
    assert store.nbytes <= limit
    assert_clean(store)


def test_killed_at_any_moment_it_loses_nothing_that_was_acknowledged(store, model):
    states, chance = contexts(model, 200), random.Random(3)
    acknowledged, kills, deadline = 0, 0, time.monotonic() + 60
    while acknowledged < len(states):
        reading, writing = os.pipe()

        def write(begin=acknowledged, writing=writing):
            own = ContextStore(store.folder)
            for state in states[begin:]:
                own.put(state)
                os.write(writing, b"1")

        child = in_child(write)
        os.close(writing)
        if time.monotonic() < deadline:
            time.sleep(chance.uniform(0, 0.15))
            os.kill(child, signal.SIGKILL)
        killed = wait_for(child) == -signal.SIGKILL
        kills += killed
        with os.fdopen(reading, "rb") as pipe:
            acknowledged += len(pipe.read())
        opened = ContextStore(store.folder)
        hashes = {entry.token_hash for entry in opened.list()}
        assert {state.token_hash for state in states[:acknowledged]} <= hashes
        assert len(hashes) <= acknowledged + 1
        if killed:
            assert list((opened.folder / "work").iterdir()) == []
    assert kills >= 5
    assert_clean(ContextStore(store.folder))
    assert store.find(model, ids(6, seed=299))[1] == 6


def test_killed_while_evicting_and_removing_it_stays_whole(store, model):
    states, chance = contexts(model, 12), random.Random(5)
    limit = 3 * store.put(states[0]).nbytes

    def write():
        own, order = ContextStore(store.folder, max_bytes=limit), random.Random(6)
        while True:
            own.put(order.choice(states))
            if order.random() < 0.3:
                own.remove(own.list()[-1])

    for _ in range(15):
        child = in_child(write)
        time.sleep(chance.uniform(0.02, 0.2))
        os.kill(child, signal.SIGKILL)
        assert wait_for(child) == -signal.SIGKILL
        opened = ContextStore(store.folder)
        assert opened.nbytes <= limit
        assert_clean(opened)


def test_what_a_living_process_writes_is_not_swept(store, model):
    reading, writing = os.pipe()

    def write():
        with store._working_folder() as work:
            (work / "half").write_text("half")
            os.write(writing, b"1")
            time.sleep(60)

    child = in_child(write)
    os.read(reading, 1)
    ContextStore(store.folder)
    assert len(list((store.folder / "work").glob("*/half"))) == 1
    os.kill(child, signal.SIGKILL)
    wait_for(child)
    ContextStore(store.folder)
    assert list((store.folder / "work").iterdir()) == []
    os.close(reading)
    os.close(writing)


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "states/README.md",
        "states/novel.state/context.json",
        "states/0123456789abcdef0123456789abcdef0123456/context.json",
        "work/thesis/ch1.txt",
        "work/written-by-hand.txt",
        "work/deleted-scenes/1.txt",
    ],
)
def test_a_folder_of_something_else_is_refused_and_nothing_in_it_is_touched(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"holds no store of contexts \(.* files\): name a new folder"):
        ContextStore(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert not is_store(tmp_path)


def test_only_what_is_named_as_a_store_names_it_is_ever_deleted(store, model):
    entry = store.put(ContextState.read(model, ids(9)))
    state = ContextState.read(model, ids(12))
    state.save(store.folder / "states" / "novel.state")
    for name in ("states/README.md", "work/thesis/ch1.txt", "work/deleted-scenes/1.txt", "notes.txt"):
        (store.folder / name).parent.mkdir(exist_ok=True)
        (store.folder / name).write_text("precious")
    others = files_in(store.folder)
    left = [store.folder / "states" / ("0" * 40), store.folder / "work" / f"deleted-{'0' * 16}"]
    for path in (*left, store.folder / "states" / ("1" * 40) / "context.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("left behind")  # two of them plain files
    ContextStore(store.folder, sweep=False)
    assert all(path.exists() for path in left)
    ContextStore(store.folder)
    assert files_in(store.folder).keys() == others.keys()
    (store.folder / "index.sqlite3").write_bytes(b"x" * 5000)
    assert [found.name for found in ContextStore(store.folder).list()] == [entry.name]
    assert files_in(store.folder).keys() - others.keys() <= {"index.sqlite3.damaged", "index.sqlite3.damaged-journal"}


def test_a_plain_file_in_the_place_of_a_context_goes(store, model):
    state = ContextState.read(model, ids(9))
    name = store.put(state).name
    store.remove(name)
    (store.folder / "states" / name).write_text("a file")
    store.put(state)
    assert_clean(store)
    shutil.rmtree(store.folder / "states" / name)
    (store.folder / "states" / name).write_text("a file")
    assert store.find(model, ids(9)) is None
    assert_clean(store)


def test_a_damaged_name_in_the_index_deletes_nothing_elsewhere(store, model, tmp_path):
    entry = store.put(ContextState.read(model, ids(9)))
    (tmp_path / "thesis").mkdir()
    with store._index.transaction() as connection:
        connection.execute("UPDATE contexts SET name = '../../thesis' WHERE id = ?", (entry.id,))
    store.remove("../../thesis")
    assert (tmp_path / "thesis").is_dir()
    assert store.list() == []


def test_a_store_is_known_by_its_index_or_by_what_it_holds(store, model, tmp_path):
    assert is_store(store.folder)
    assert not is_store(tmp_path / "absent")
    (tmp_path / "other" / "states").mkdir(parents=True)
    assert not is_store(tmp_path / "other")
    store.put(ContextState.read(model, ids(9)))
    (store.folder / "index.sqlite3").unlink()
    assert is_store(store.folder)


ON_A_SMALL_DISK = """
import errno, logging, os, pathlib, sys
import torch
torch.set_num_threads(1)
from context_models import ids, tiny
from echo_ska.memory import ContextState, ContextStore
model, folder = tiny(ska_layers=[1]), pathlib.Path(sys.argv[1])
store, kept = ContextStore(folder / "store"), []
for n in range(1000):
    state = ContextState.read(model, ids(6, seed=n))
    try:
        store.put(state)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        message = str(error)
        assert "was not stored (the context" in message or "was not stored (No space" in message, message
        assert "No space left on device" in message and "free space, or remove() contexts" in message, message
        break
    kept.append(n)
else:
    raise AssertionError("the disk was not full")
store = ContextStore(folder / "store")
assert [store.find(model, ids(6, seed=n))[1] for n in kept] == [6] * len(kept)
assert store.read(model, ids(7, seed=n)).tokens == 7  # not kept, and not lost
(folder / "filler").write_bytes(b"x" * max(0, os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize))
for entry in store.list()[:3]:
    store.remove(entry)
(folder / "filler").unlink()
store.put(state)
assert store.find(model, ids(6, seed=n))[1] == 6
assert list((folder / "store" / "work").iterdir()) == []
print("kept", len(kept))
"""


def test_a_full_disk_leaves_the_store_usable_and_says_so(tmp_path):
    (tmp_path / "disk").mkdir()
    mount = 'mount -t tmpfs -o size=512k none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        possible = subprocess.run([*command, 'mount -t tmpfs none "$1"', "sh", tmp_path / "disk"], check=False)
    except FileNotFoundError:
        possible = None
    if possible is None or possible.returncode:
        pytest.skip("no small disk can be mounted here; the next test limits a file's size instead")
    script = ON_A_SMALL_DISK
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, os.path.dirname(__file__)])}
    run = subprocess.run(
        [*command, mount, "sh", tmp_path / "disk", sys.executable, script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[1]) > 5


def test_a_write_that_fails_leaves_the_store_usable_and_says_so(store, model):
    """Files may not grow beyond some bytes: a real write that fails, wherever tests run."""
    small, large = contexts(model, 2), ContextState.read(tiny(attention_layers=[1]), ids(4000))
    store.put(small[0])

    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OSError, match=r"^\[Errno 27\] the context of 4,000 tokens was not stored .*File too large"):
            store.put(large)
        assert list((store.folder / "work").iterdir()) == []
        store.put(small[1])

    assert large.nbytes > 200_000
    assert wait_for(in_child(write)) == 0
    assert len(store.list()) == 2
    assert_clean(store)


def test_the_index_says_what_is_wrong(tmp_path):
    index = ContextIndex(tmp_path / "nowhere" / "index.sqlite3")
    with pytest.raises(OSError, match="unable to open database file") as caught:
        index.rows()
    assert caught.value.errno == errno.EIO
