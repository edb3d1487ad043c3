import json
import math
import shutil

import pytest
import torch
from sentences import sentence
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from echo_ska.corpus import CorpusSettings, CorpusTokenizer, TokenStream, prepare_corpus, score_documents, scoring
from echo_ska.corpus.permutation import permuted
from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.training import bits_per_byte
from echo_ska.training.bits_per_byte import read_tokens

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_heads": 2, "rank": 4, "state_size": 4}


def model_of(vocab_size):
    torch.manual_seed(0)
    return EchoForCausalLM(EchoConfig(**SIZES, vocab_size=vocab_size, ska_layers=[1]))


def held_out(folder):
    stream = TokenStream(folder, "held-out")
    return stream, stream.index.open_tokenizer(folder)


def test_bytes_are_scored_document_by_document(bytes_corpus):
    model, (stream, tokenizer) = model_of(256), held_out(bytes_corpus)
    score = score_documents(model, stream, tokenizer, segment_length=13)
    texts = [torch.from_numpy(stream.document(number)[0]) for number in range(stream.documents)]
    alone = [bits_per_byte(model, text, segment_length=13) for text in texts]
    bits = sum(one.bits_per_byte * one.bytes_scored for one in alone)
    assert score.documents == stream.documents
    assert score.tokens_scored == score.bytes_scored == stream.tokens - 2 * stream.documents
    assert score.bits_per_byte == pytest.approx(bits / score.bytes_scored, rel=1e-5)
    assert score.nats_per_token == pytest.approx(score.bits_per_byte * math.log(2), rel=1e-9)
    assert score.state_bytes == max(one.cache.nbytes for one in alone)


def test_bits_per_byte_of_byte_pairs_count_the_bytes_of_what_was_scored(bpe_corpus):
    model, (stream, tokenizer) = model_of(300), held_out(bpe_corpus)
    score = score_documents(model, stream, tokenizer)
    documents = [stream.document(number)[0] for number in range(stream.documents)]
    scored = sum(len(tokenizer.tokenizer.decode(ids.tolist()).encode()) for ids in documents)
    firsts = sum(len(tokenizer.tokenizer.decode(ids[:1].tolist()).encode()) for ids in documents)
    assert score.bytes_scored == scored - firsts
    assert score.tokens_scored == sum(len(ids) - 1 for ids in documents) < score.bytes_scored
    assert score.bits_per_byte * score.bytes_scored * math.log(2) == pytest.approx(
        score.nats_per_token * score.tokens_scored, rel=1e-12
    )
    with torch.no_grad():  # from the definition
        nats = 0.0
        for ids in documents:
            logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1].double()
            nats -= logits.log_softmax(-1).gather(1, torch.from_numpy(ids[1:, None])).sum().item()
    assert score.nats_per_token == pytest.approx(nats / score.tokens_scored, rel=1e-5)


def test_a_model_that_knows_nothing_pays_a_token_its_kind(bpe_corpus):
    model, (stream, tokenizer) = model_of(300), held_out(bpe_corpus)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert score_documents(model, stream, tokenizer).nats_per_token == pytest.approx(math.log(300), rel=1e-6)


def test_a_part_is_read_where_there_is_more(bytes_corpus, monkeypatch):
    monkeypatch.setattr(scoring, "LEAST_READ", 40)
    model, (stream, tokenizer) = model_of(256), held_out(bytes_corpus)
    read = []
    score = score_documents(model, stream, tokenizer, max_bytes=100, progress=read.append)
    assert score.documents >= 3
    assert score.tokens_scored + score.documents == read[-1] <= 100
    order = [permuted(turn, stream.documents, scoring.ORDER) for turn in range(stream.documents)]
    assert sorted(order) == list(range(stream.documents)) != order
    first = len(stream.document(order[0])[0])
    assert read[0] == min(40, first)
    monkeypatch.setattr(scoring, "LEAST_READ", 4096)
    assert score_documents(model, stream, tokenizer, max_bytes=first).documents == 1
    with pytest.raises(ValueError, match="max_bytes must be at least 2, got 1"):
        score_documents(model, stream, tokenizer, max_bytes=1)


def test_models_of_other_tokenizers_are_scored_on_the_same_text(bytes_corpus, bpe_corpus, monkeypatch):
    monkeypatch.setattr(scoring, "LEAST_READ", 30)
    read = {}
    for folder, vocab_size in ((bytes_corpus, 256), (bpe_corpus, 300)):
        stream, tokenizer = held_out(folder)
        texts = read.setdefault(vocab_size, [])

        def keep(model, ids, texts=texts, tokenizer=tokenizer, **settings):
            texts.append(tokenizer.tokenizer.decode(ids.tolist()))
            return read_tokens(model, ids, **settings)

        monkeypatch.setattr(scoring, "read_tokens", keep)
        score = score_documents(model_of(vocab_size), stream, tokenizer, max_bytes=100)
        firsts = sum(tokenizer.text_bytes(tokenizer.encode([text])[0][:1]) for text in texts)
        assert score.bytes_scored == sum(len(text.encode()) for text in texts) - firsts
    assert len(read[256]) == len(read[300]) >= 3
    longest = max(len(piece) for piece in tokenizer.tokenizer.get_vocab())
    for whole, shorter in zip(read[256], read[300], strict=True):
        assert whole.startswith(shorter)
        assert len(whole.encode()) - len(shorter.encode()) < longest


def test_a_space_that_the_tokenizer_adds_is_not_scored(tmp_path, tokenizer_folder):
    """Of texts that begin with a space and texts that do not."""
    definition = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    definition["pre_tokenizer"]["add_prefix_space"] = True
    shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(definition))
    texts = [("", " ")[number % 2] + sentence(number) for number in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = CorpusSettings(str(tmp_path / "tokenizer"), held_out=0.5)
    prepare_corpus([str(tmp_path / "a.jsonl")], tmp_path / "c", settings)
    stream, tokenizer = held_out(tmp_path / "c")
    written = [str(tokenizer.tokenizer.decode(stream.document(n)[0].tolist())) for n in range(stream.documents)]
    assert all(text.startswith(" Document") for text in written)
    firsts = sum(len(tokenizer.tokenizer.decode(stream.document(n)[0][:1].tolist())) for n in range(stream.documents))
    for most in (None, 10**6):
        score = score_documents(model_of(300), stream, tokenizer, max_bytes=most)
        assert score.bytes_scored == sum(len(text.encode()) for text in written) - firsts


def test_an_unknown_first_token_counts_what_it_stands_for_not_its_own_name(tmp_path):
    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 2, "b": 3, "ampersand": 4}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Replace("&", "ampersand"), pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(tmp_path / "words")

    def corpus(name, texts):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        settings = CorpusSettings(str(tmp_path / "words"), held_out=0)
        index = prepare_corpus([str(tmp_path / f"{name}.jsonl")], tmp_path / name, settings)
        return TokenStream(tmp_path / name), index.open_tokenizer(tmp_path / name)

    texts = ["x a", "xyz a b", "a xyz", "b", "xy zt", "q w a"]  # 2 + 4 + 4 + 0 + 3 + 4 bytes behind the first words
    score = score_documents(model_of(5), *corpus("some", texts))
    assert score.bytes_scored == 2 + 4 + 4 + 3 + 4
    assert score.documents == 5
    assert score.bits_per_byte > 0
    with pytest.raises(ValueError, match=r"has two tokens, and text behind the first: there is nothing to score"):
        scoring.require_scorable(*corpus("none", ["a", "xyz", "& a"]))


def test_nothing_to_score(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{character}"}}\n' for character in "abcdefgh"))
    prepare_corpus([str(tmp_path / "a.jsonl")], tmp_path / "c", CorpusSettings(held_out=0.5))
    with pytest.raises(ValueError, match="No document of the held-out split has two tokens"):
        score_documents(model_of(256), TokenStream(tmp_path / "c", "held-out"), CorpusTokenizer("bytes"))
