import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import time

import pytest
from sentences import sentence

from echo_ska.corpus import CorpusSettings, TokenStream, prepare_corpus, read_index
from echo_ska.corpus import prepare as prepare_module
from echo_ska.corpus import writer as writer_module
from echo_ska.sealed import write_description

SETTINGS = CorpusSettings(held_out=0.2, shard_tokens=900)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts(folder):
    """Of each split, decoded from the shards."""
    split = {}
    for name in ("training", "held-out"):
        stream = TokenStream(folder, name)
        documents = [stream.document(number) for number in range(stream.documents)]
        split[name] = [bytes(ids.tolist()).decode() for ids, _ in documents]
        assert [size for _, size in documents] == [len(text.encode()) for text in split[name]]
    return split


def test_every_document_is_there_once_and_in_order(bytes_corpus):
    found = texts(bytes_corpus)
    assert sorted(found["training"] + found["held-out"]) == sorted(map(sentence, range(60)))
    for documents in found.values():
        order = [int(text.split()[1]) for text in documents]
        assert order == sorted(order)
    assert 4 <= len(found["held-out"]) <= 20
    index = read_index(bytes_corpus)
    assert index.complete
    assert index.documents_read == 60
    assert len(index.splits["training"]) >= 3
    assert index.total("training", "tokens") == sum(len(text.encode()) + 1 for text in found["training"])
    assert index.total("held-out", "text_bytes") == sum(len(text.encode()) for text in found["held-out"])


def test_byte_pairs_hold_the_same_texts(bytes_corpus, bpe_corpus, tokenizer_folder):
    index, tokenizer = read_index(bpe_corpus), read_index(bpe_corpus).open_tokenizer(bpe_corpus)
    assert index.dtype.itemsize == 2
    for split, expected in texts(bytes_corpus).items():
        stream = TokenStream(bpe_corpus, split)
        documents = [stream.document(number) for number in range(stream.documents)]
        assert [tokenizer.tokenizer.decode(ids.tolist()) for ids, _ in documents] == expected
        assert [size for _, size in documents] == [len(text.encode()) for text in expected]


def test_copies_stay_on_one_side(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {n % 30}"}) + "\n" for n in range(300)))
    prepare_corpus([str(tmp_path / "a.jsonl")], tmp_path / "c", CorpusSettings(held_out=0.3))
    found = texts(tmp_path / "c")
    assert set(found["training"]).isdisjoint(found["held-out"])
    assert len(found["held-out"]) % 10 == 0


def test_documents_that_cannot_be_learnt_are_counted(tmp_path):
    rows = ["one", "", " \n", None, "nul\0nul", "half \ud83e of a pair", "two"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    index = prepare_corpus([str(tmp_path / "a.jsonl")], tmp_path / "c", CorpusSettings(held_out=0))
    assert index.skipped == {"empty": 3, "not text": 2}
    assert index.documents_read == 7
    assert TokenStream(tmp_path / "c").read(0, 8).tolist() == list(b"one\0two\0")


@pytest.mark.parametrize(("raw", "words"), [(b"t\0xt", "byte 1 is NUL; leave it out"), (b"t\xffxt", "byte 1 is 0xff")])
def test_a_text_file_that_is_no_text_ends_it_and_is_named(tmp_path, monkeypatch, raw, words):
    """Unlike such a row: a file that is not text is there by mistake."""
    (tmp_path / "texts").mkdir()
    sources = [str(tmp_path / "texts")]
    for number in range(40):
        (tmp_path / "texts" / f"{number:02}.txt").write_text(sentence(number))
    (tmp_path / "texts" / "30.txt").write_bytes(raw)
    for name, at_once in (("none whole", 1 << 20), ("some whole", 1)):
        monkeypatch.setattr(prepare_module, "ENCODED_AT_ONCE", at_once)
        with pytest.raises(ValueError, match=f"30.txt is not .*text: {words}"):
            prepare_corpus(sources, tmp_path / name, SETTINGS)
    (tmp_path / "texts" / "30.txt").unlink()
    assert prepare_corpus(sources, tmp_path / "none whole", SETTINGS).documents_read == 39
    with pytest.raises(ValueError, match=r"bytes 2,604, files 39.* was begun with .*bytes 2,608, files 40"):
        prepare_corpus(sources, tmp_path / "some whole", SETTINGS)


def test_several_sources_and_a_limit(rows, tmp_path):
    (tmp_path / "first.txt").write_text("first of all")
    sources = [str(tmp_path / "first.txt"), str(rows)]
    seen = []
    settings = CorpusSettings(held_out=0, max_tokens=300, shard_tokens=100)
    index = prepare_corpus(sources, tmp_path / "c", settings, progress=seen.append)
    assert seen[-1].tokens == index.total("training", "tokens")
    stream = TokenStream(tmp_path / "c")
    assert bytes(stream.document(0)[0].tolist()) == b"first of all"
    last = len(stream.document(stream.documents - 1)[0]) + 1
    assert stream.tokens - last < 300 <= stream.tokens


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be killed")
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    rows, settings = tmp_path / "many.jsonl", CorpusSettings(held_out=0.1, shard_tokens=60_000)
    with rows.open("w") as file:
        file.writelines(json.dumps({"text": f"{n} " + "some words " * (n % 50)}) + "\n" for n in range(8_000))
    prepare_corpus([str(rows)], tmp_path / "whole", settings)
    killed, known, kills = tmp_path / "killed", 0, 0
    for moment in (0.0, 0.002, 0.005, 0.011):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                prepare_corpus([str(rows)], killed, settings)
            os._exit(0)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if len(list(killed.glob("training/shard-*.bin"))) > known + 4:
                time.sleep(moment)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += 1
                break
            time.sleep(0.0005)
        known = len(list(killed.glob("training/shard-*.bin")))
    assert kills >= 2  # else it was too fast to be killed
    assert prepare_corpus([str(rows)], killed, settings).complete
    assert contents(killed) == contents(tmp_path / "whole")


def test_interrupted_between_shards_it_tokenises_nothing_twice(rows, tmp_path, monkeypatch):
    prepare_corpus([str(rows)], tmp_path / "whole", SETTINGS)
    monkeypatch.setattr(prepare_module, "ENCODED_AT_ONCE", 1)
    real, encoded = prepare_module.CorpusTokenizer.encode, []

    def stopping(self, batch):
        encoded.extend(batch)
        if len(encoded) == 40:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(prepare_module.CorpusTokenizer, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare_corpus([str(rows)], tmp_path / "c", SETTINGS)
    assert not list((tmp_path / "c").rglob(".partial-*"))
    begun = read_index(tmp_path / "c")
    assert not begun.complete
    with pytest.raises(ValueError, match="is not complete: give the `echo-ska data prepare` that began it once more"):
        TokenStream(tmp_path / "c")
    encoded.extend(["no 40 again"] * 40)
    prepare_corpus([str(rows)], tmp_path / "c", SETTINGS)
    assert encoded[80:] == [sentence(number) for number in range(begun.documents_read, 60)]
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


@pytest.fixture
def begun(rows, tmp_path, monkeypatch):
    """A corpus of which some shards are there."""
    monkeypatch.setattr(prepare_module, "ENCODED_AT_ONCE", 1)

    def stop(progress):
        if progress.documents == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_corpus([str(rows)], tmp_path / "c", SETTINGS, stop)
    return tmp_path / "c"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"held_out": 0.3}, "^--held-out 0.3, but .* was begun with --held-out 0.2: give the same sources and options"),
        ({"shard_tokens": 1000}, "^--shard-tokens 1000, but .* with --shard-tokens 900: .*, or another --output"),
        ({"max_tokens": 10**6}, "^--max-tokens 1000000, but .* with no --max-tokens"),
        (
            {"field": "body", "held_out": 0.3},
            "^--field body and --held-out 0.3, .* with --field text and --held-out 0.2",
        ),
    ],
)
def test_another_configuration_is_refused_and_nothing_lost(begun, rows, changes, words):
    before = contents(begun)
    asked = {"held_out": 0.2, "shard_tokens": 900} | changes
    with pytest.raises(ValueError, match=words):
        prepare_corpus([str(rows)], begun, CorpusSettings(**asked))
    assert contents(begun) == before


def test_other_sources_or_another_tokenizer_are_refused_and_nothing_lost(begun, rows, tokenizer_folder):
    before, written = contents(begun), rows.read_text()
    with pytest.raises(ValueError, match=r"^--tokenizer \S+ \(of sha256 \w{12}\), but .* with --tokenizer bytes:"):
        prepare_corpus([str(rows)], begun, CorpusSettings(str(tokenizer_folder), held_out=0.2, shard_tokens=900))
    one = re.escape(f"{rows.name} (bytes {len(rows.read_bytes()):,})")
    with pytest.raises(ValueError, match=f"^SOURCE {one}, {one}, but .* was begun with SOURCE {one}: give the same"):
        prepare_corpus([str(rows), str(rows)], begun, SETTINGS)
    rows.write_text(written.replace("Document 3 ", "Document 4 "))  # of the same size
    with pytest.raises(ValueError, match="are not what they were when it was begun"):
        prepare_corpus([str(rows)], begun, SETTINGS)
    assert contents(begun) == before
    rows.write_text(written)
    assert prepare_corpus([str(rows)], begun, SETTINGS).complete


def test_what_is_complete_is_left_alone(bytes_corpus, rows):
    before = {path: path.stat().st_mtime_ns for path in bytes_corpus.rglob("*")}
    assert prepare_corpus([str(rows)], bytes_corpus, SETTINGS).complete
    assert {path: path.stat().st_mtime_ns for path in bytes_corpus.rglob("*")} == before


def changed(path, text):
    """Written anew, and not within the tick of the clock that the file was written in before."""
    path.write_text(text)
    os.utime(path, (1_000_000_000, path.stat().st_mtime + 10))


def test_sources_that_changed_under_a_complete_corpus_are_refused(bytes_corpus, rows):
    before, written = contents(bytes_corpus), rows.read_text()
    changed(rows, written.replace("Document 3 ", "Document 4 "))
    assert rows.stat().st_size == len(written.encode())
    with pytest.raises(ValueError, match=r"are not what they were when it was prepared .*: prepare them in another"):
        prepare_corpus([str(rows)], bytes_corpus, SETTINGS)
    shorter = "".join(json.dumps({"text": text}) + "\n" for text in map(sentence, range(59)))
    changed(rows, shorter.ljust(len(written)))  # blank lines are no rows
    with pytest.raises(ValueError, match="are not what they were"):
        prepare_corpus([str(rows)], bytes_corpus, SETTINGS)
    assert contents(bytes_corpus) == before


def test_files_that_were_copied_anew_are_read_once_more_and_once_only(bytes_corpus, rows):
    before, seen = contents(bytes_corpus), []
    changed(rows, rows.read_text())
    index = prepare_corpus([str(rows)], bytes_corpus, SETTINGS, seen.append)
    assert seen
    assert index == read_index(bytes_corpus)
    after = contents(bytes_corpus)
    assert {name for name in before if before[name] != after[name]} == {"index.json"}
    prepare_corpus([str(rows)], bytes_corpus, SETTINGS, lambda progress: pytest.fail("it was read again"))
    assert contents(bytes_corpus) == after


def test_more_rows_in_files_of_the_same_size_are_noticed(tmp_path):
    rows = tmp_path / "rows.jsonl"
    line = json.dumps({"text": "a text"}) + "\n"
    rows.write_text(line * 9 + " " * len(line))
    prepare_corpus([str(rows)], tmp_path / "c", CorpusSettings(held_out=0))
    prepare_corpus([str(rows)], tmp_path / "enough", CorpusSettings(held_out=0, max_tokens=20))
    changed(rows, line * 10)
    with pytest.raises(ValueError, match="are not what they were"):
        prepare_corpus([str(rows)], tmp_path / "c", CorpusSettings(held_out=0))
    assert prepare_corpus([str(rows)], tmp_path / "enough", CorpusSettings(held_out=0, max_tokens=20)).complete


def test_a_corpus_of_before_sources_had_stamps_opens_and_is_read_once_more(bytes_corpus, rows, monkeypatch):
    written = json.loads((bytes_corpus / "index.json").read_text())
    del written["stamps"], written["checksum"]
    write_description(bytes_corpus, written, kind="index")
    assert read_index(bytes_corpus).stamps == ()
    assert TokenStream(bytes_corpus).documents > 0
    seen = []
    assert prepare_corpus([str(rows)], bytes_corpus, SETTINGS, seen.append).complete
    assert seen
    assert len(read_index(bytes_corpus).stamps) == 1


def test_a_folder_of_something_else_is_refused(rows, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no corpus: name a new folder"):
        prepare_corpus([str(rows)], tmp_path / "mine", SETTINGS)
    assert contents(tmp_path / "mine") == {"notes.txt": b"precious"}


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "training/notes.txt", "held-out/x/shard-00000.bin"])
def test_files_where_a_corpus_has_its_own_are_refused_before_any_work(rows, tokenizer_folder, tmp_path, name):
    (tmp_path / "mine" / name).parent.mkdir(parents=True)
    (tmp_path / "mine" / name).write_text("precious")
    settings = CorpusSettings(str(tokenizer_folder), held_out=0.2)
    with pytest.raises(ValueError, match=r"holds no corpus: name a new folder, or take .* out of it"):
        prepare_corpus([str(rows)], tmp_path / "mine", settings, lambda progress: pytest.fail("work was done"))
    assert contents(tmp_path / "mine") == {name: b"precious"}


def test_a_tokenizer_in_the_folder_of_the_corpus_is_refused_before_any_work(rows, tokenizer_folder, tmp_path):
    kept = shutil.copytree(tokenizer_folder, tmp_path / "mine" / "tokenizer")
    before = contents(tmp_path / "mine")
    settings = CorpusSettings(str(kept), held_out=0.2)
    with pytest.raises(ValueError, match=f"holds no corpus: name a new folder, or take {kept} out of it"):
        prepare_corpus([str(rows)], tmp_path / "mine", settings, lambda progress: pytest.fail("work was done"))
    assert contents(tmp_path / "mine") == before


@pytest.mark.parametrize("left", ["tokenizer", "no tokenizer"])
def test_killed_while_the_tokenizer_is_kept_it_begins_anew(rows, tokenizer_folder, tmp_path, monkeypatch, left):
    """With the copy of it, too, where the first attempt came so far."""
    settings = CorpusSettings(str(tokenizer_folder), held_out=0.2, shard_tokens=400)
    prepare_corpus([str(rows)], tmp_path / "whole", settings)
    real = prepare_module.CorpusTokenizer.keep

    def killed(tokenizer, folder):
        if left == "tokenizer":
            real(tokenizer, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module.CorpusTokenizer, "keep", killed)
    monkeypatch.setattr(prepare_module._Run, "discard", lambda run: None)
    with pytest.raises(KeyboardInterrupt):
        prepare_corpus([str(rows)], tmp_path / "c", settings)
    monkeypatch.undo()
    assert (tmp_path / "c" / "tokenizer").exists() == (left == "tokenizer")
    if left == "tokenizer":
        settings = dataclasses.replace(settings, tokenizer=str(tmp_path / "c" / "tokenizer"))
    assert prepare_corpus([str(rows)], tmp_path / "c", settings).complete
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_a_tokenizer_that_could_not_be_opened_again_is_refused_before_any_work(rows, tokenizer_folder, tmp_path):
    """Its class is chosen by a file that is not a tokenizer's."""
    folder = tmp_path / "gpt2"
    folder.mkdir()
    shutil.copy(tokenizer_folder / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    settings = CorpusSettings(str(folder), held_out=0.2, shard_tokens=400)
    index = prepare_corpus([str(rows)], tmp_path / "c", settings)
    assert index.open_tokenizer(tmp_path / "c").describe() == index.tokenizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("echo_ska.corpus.tokenizer.CHOOSING", ())
        with pytest.raises(
            ValueError, match=r"A copy of the tokenizer's files in .* is not read as the same tokenizer"
        ):
            prepare_corpus([str(rows)], tmp_path / "d", settings, lambda progress: pytest.fail("work was done"))
    assert contents(tmp_path / "d") == {}


def test_a_second_preparation_is_refused_while_the_first_goes_on(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "ENCODED_AT_ONCE", 1)
    prepare_corpus([str(rows)], tmp_path / "whole", SETTINGS)
    refusals = []

    def second(progress):
        with pytest.raises(ValueError, match=f"another process is preparing {tmp_path / 'c'}: wait for its end, or"):
            prepare_corpus([str(rows)], tmp_path / "c", SETTINGS)
        refusals.append(progress.documents)

    prepare_corpus([str(rows)], tmp_path / "c", SETTINGS, second)
    assert len(refusals) > 10
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_shards_whose_index_was_lost_are_left_alone(bytes_corpus, rows):
    (bytes_corpus / "index.json").unlink()
    before = contents(bytes_corpus)
    with pytest.raises(ValueError, match=r"holds shards \(held-out/shard-00000.bin\) and not the index.json that"):
        prepare_corpus([str(rows)], bytes_corpus, SETTINGS)
    assert contents(bytes_corpus) == before


def test_killed_before_the_first_shard_counts_it_begins_anew_with_any_settings(rows, tmp_path, monkeypatch):
    prepare_corpus([str(rows)], tmp_path / "whole", SETTINGS)
    real, written = prepare_module.write_index, []

    def killed(directory, index):  # after the shards have their names, before the index names them
        written.append(index)
        if len(written) == 2:
            raise KeyboardInterrupt
        real(directory, index)

    monkeypatch.setattr(prepare_module, "write_index", killed)
    monkeypatch.setattr(prepare_module._Run, "discard", lambda run: None)
    with pytest.raises(KeyboardInterrupt):
        prepare_corpus([str(rows)], tmp_path / "c", CorpusSettings(held_out=0.5, shard_tokens=300))
    monkeypatch.undo()
    assert list((tmp_path / "c").glob("training/shard-*"))
    assert prepare_corpus([str(rows)], tmp_path / "c", SETTINGS).complete
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "last",  # what is not flushed any more
    [
        "training/.partial-shard-{:05}.bin",
        "training/.partial-shard-{:05}.documents.bin",
        "held-out/.partial-shard-{:05}.bin",
        "held-out/.partial-shard-{:05}.documents.bin",
        ".partial-index.json",
    ],
)
def test_ended_while_a_shard_is_closed_the_same_command_goes_on(
    rows, tokenizer_folder, tmp_path, monkeypatch, last, number, error
):
    settings = CorpusSettings(str(tokenizer_folder), held_out=0.2, shard_tokens=400)
    prepare_corpus([str(rows)], tmp_path / "whole", settings)
    corpus, real, indices = tmp_path / "c", writer_module.flush, []

    def ended(path):
        name = str(path.relative_to(corpus)).partition("json-")[0]
        indices.extend([name] if name.startswith(".partial-index.") else [])
        if name == last.format(number) or (f"{name}json" == last and len(indices) == number + 2):
            raise error
        real(path)

    monkeypatch.setattr(writer_module, "flush", ended)
    monkeypatch.setattr("echo_ska.sealed.disk.flush", ended)
    with pytest.raises(type(error)):
        prepare_corpus([str(rows)], corpus, settings)
    monkeypatch.undo()
    splits = read_index(corpus).splits
    named = {f"{split}/{name}" for split in splits for shard in splits[split] for name in shard.files}
    assert {str(path.relative_to(corpus)) for path in corpus.rglob("*.bin")} == named
    assert bool(named) == bool(number)
    assert prepare_corpus([str(rows)], corpus, settings).complete
    assert contents(corpus) == contents(tmp_path / "whole")


def test_an_empty_split_is_refused_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.txt").write_text("one text")
    (tmp_path / "empty.txt").touch()
    for name, held_out, words in (
        ("a.txt", 0.01, "Of 1 documents none was held out by --held-out 0.01: choose a larger part, give more"),
        ("a.txt", 0.9999, "Of 1 documents none is left to train on"),
        ("empty.txt", 0.0, r"Of 1 documents none is left to train on \(1 are empty, 0 not text\)"),
    ):
        with pytest.raises(ValueError, match=words):
            prepare_corpus([str(tmp_path / name)], tmp_path / "c", CorpusSettings(held_out=held_out))
        assert contents(tmp_path / "c") == {}
    assert prepare_corpus([str(tmp_path / "a.txt")], tmp_path / "c", CorpusSettings(held_out=0.0)).complete


def test_of_few_documents_it_is_said_which_part_holds_some_out(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    with pytest.raises(ValueError, match=r"choose a larger part \(0\.\d+ holds some out\), give more") as refused:
        prepare_corpus([str(tmp_path)], tmp_path / "c", CorpusSettings(held_out=0.001))
    enough = float(str(refused.value).split("(")[1].split()[0])
    index = prepare_corpus([str(tmp_path)], tmp_path / "c", CorpusSettings(held_out=enough))
    assert index.total("held-out", "documents") == 1
    with pytest.raises(ValueError, match="none was held out"):
        prepare_corpus([str(tmp_path)], tmp_path / "d", CorpusSettings(held_out=round(enough - 0.01, 2)))


def test_an_empty_split_of_many_shards_names_the_way_out(rows, tmp_path):
    with pytest.raises(ValueError, match=r"with 0 \(in another directory, since .* keeps the shards"):
        prepare_corpus([str(rows)], tmp_path / "c", CorpusSettings(held_out=1e-9, shard_tokens=900))


def test_settings_out_of_range():
    for changes in ({"held_out": 1.0}, {"held_out": -0.1}, {"shard_tokens": 0}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(changes))} must be"):
            CorpusSettings(**changes)
    with pytest.raises(ValueError, match="name at least one source"):
        prepare_corpus([], "nowhere")


def test_a_disk_that_is_full_keeps_the_whole_shards(rows, tmp_path):
    """Files may not grow beyond some bytes: a real write that fails, wherever tests run."""
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    both, settings = tmp_path / "both.jsonl", CorpusSettings(held_out=0, shard_tokens=900)
    both.write_text(rows.read_text() + json.dumps({"text": "a long text " * 2000}) + "\n")
    prepare_corpus([str(both)], tmp_path / "whole", settings)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
        with pytest.raises(OSError, match=r"shard-\d+.bin could not be written \(File too large\): make room and give"):
            prepare_corpus([str(both)], tmp_path / "c", settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "c").rglob(".partial-*"))
    kept = contents(tmp_path / "c")
    assert len(read_index(tmp_path / "c").splits["training"]) >= 3
    prepare_corpus([str(both)], tmp_path / "c", settings)
    after = contents(tmp_path / "c")
    assert after == contents(tmp_path / "whole")
    assert all(after[name] == kept[name] for name in kept if name != "index.json")
