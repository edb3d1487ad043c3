import pytest
from fineweb import rows_of, write_dataset

from echo_ska.corpus import CorpusSettings, TokenStream, prepare_corpus
from echo_ska.corpus.hub import HubSource

datasets = pytest.importorskip("datasets", reason="pip install 'echo-ska[data]'")


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A folder that `datasets` reads as it reads the hub, and no other place to look at."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return write_dataset(tmp_path / "web")


def test_the_sample_is_streamed_in_order(dataset):
    source = HubSource(f"hub:{dataset}:sample-10BT", "text")
    documents = list(source.documents())
    assert [document.text for document in documents] == rows_of(0, 25)["text"]
    assert documents[24].origin == f"{dataset} (train), row 24"
    assert source.describe() == {"kind": "hub", "name": str(dataset), "config": "sample-10BT", "split": "train"}
    assert len(list(HubSource(f"hub:{dataset}:default:train", "url").documents())) == 3


def test_the_names_of_datasets():
    source = HubSource("hub:HuggingFaceFW/fineweb-edu:sample-10BT", "text")
    assert (source.name, source.config, source.split) == ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train")
    assert HubSource("hub:a/b", "text").config is None
    assert HubSource("hub:a/b:c:validation", "text").split == "validation"
    for name in ("hub:", "hub:a::b", "hub:a:b:c:d"):
        with pytest.raises(ValueError, match="names no dataset: write hub:NAME"):
            HubSource(name, "text")


@pytest.mark.parametrize("reader", ["pandas", "json"])
def test_no_name_stands_for_files_that_happen_to_be_here(tmp_path, monkeypatch, reader):
    """Some versions of `datasets` unpickle every *.pkl of the working directory for the name pandas."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.pkl").touch()
    (tmp_path / "here.json").write_text('{"text": "mine"}')
    with pytest.raises(ValueError, match=rf"hub:{reader} is no dataset: .* a folder of that name is hub:./{reader}"):
        HubSource(f"hub:{reader}", "text")
    written = write_dataset(tmp_path / reader)
    assert len(list(HubSource(f"hub:./{written.name}:sample-10BT", "text").documents())) == 25


def test_code_of_a_dataset_is_not_run(monkeypatch):
    asked = []

    def load(path, name=None, split=None, revision=None, streaming=False, trust_remote_code=None):
        asked.append(trust_remote_code)
        raise ValueError("it has code")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match=r"cannot be opened: it has code\."):
        next(HubSource("hub:a/b", "text").documents())
    assert asked == [False]


def test_a_revision_is_asked_for_and_described(monkeypatch, tmp_path):
    asked = []

    def load(path, name=None, split=None, revision=None, streaming=False):
        asked.append((path, name, revision))
        return datasets.Dataset.from_dict({"text": ["a", "b"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@b").mkdir()  # a folder has no revisions, and its name is its own
    for name in ("hub:a/b@87f09149:c", "hub:a/b:c", "hub:./a@b"):
        assert len(list(HubSource(name, "text").documents())) == 2
    assert asked == [("a/b", "c", "87f09149"), ("a/b", "c", None), ("./a@b", None, None)]
    assert HubSource("hub:a/b@87f09149:c", "text").describe()["revision"] == "87f09149"
    assert "revision" not in HubSource("hub:a/b:c", "text").describe()  # as corpora have it that were prepared before
    for name in ("hub:a/b@", "hub:@87f09149"):
        with pytest.raises(ValueError, match="names no revision: write hub:NAME@REVISION"):
            HubSource(name, "text")


def test_what_is_not_there(dataset, tmp_path):
    for name, words in (
        (f"hub:{dataset}:sample-10BT:test", "cannot be opened: Bad split: test"),
        (f"hub:{dataset}:sample-9BT", "cannot be opened: BuilderConfig 'sample-9BT' not found"),
        ("hub:HuggingFaceFW/fineweb-edu:sample-10BT", "cannot be opened: Couldn't reach"),
        (f"hub:{tmp_path / 'absent'}", "cannot be opened"),
    ):
        with pytest.raises(ValueError, match=words):
            next(HubSource(name, "text").documents())
    with pytest.raises(ValueError, match=r"has no field body, only text, id, dump, .* name the field"):
        next(HubSource(f"hub:{dataset}:sample-10BT", "body").documents())
    with pytest.raises(ValueError, match="row 0: the field token_count holds a value of type int"):
        next(HubSource(f"hub:{dataset}:sample-10BT", "token_count").documents())


def test_a_stream_that_breaks_says_how_to_go_on(dataset, tmp_path):
    last = dataset / "sample" / "10BT" / "002_00000.parquet"
    whole = last.read_bytes()
    last.write_bytes(whole[:-100])
    command = [f"hub:{dataset}:sample-10BT"], tmp_path / "corpus", CorpusSettings(held_out=0.3, shard_tokens=200)
    with pytest.raises(OSError, match=r"cannot be read on after row \d+: .*; give the same command again to go on"):
        prepare_corpus(*command)
    last.write_bytes(whole)
    assert prepare_corpus(*command).complete
    assert TokenStream(tmp_path / "corpus").documents + TokenStream(tmp_path / "corpus", "held-out").documents == 25
