"""WikiText's articles: where they begin, and that they read as the harness writes them."""

from __future__ import annotations

import importlib.util

import pytest

from echo_ska.evaluation.wikitext import articles, detokenized, perplexity_parts, wikitext_rows

FILE = " \n".join(
    [
        "",
        " = Robert <unk> =",
        "",
        " Robert is an actor . He had a guest @-@ starring role ; 1 @,@ 000 saw it .",
        " = 1 <unk> / s and a nominal k =",
        " 1 . A formula 's end .",
        "",
        " = = Career = =",
        "",
        ' He said " no " ( twice ) , at 20 \N{DEGREE SIGN} C .',
        "",
        " = Du Fu =",
        "",
        " Du Fu was a poet [ of old ] : the poets ' own .",
        "",
    ]
)


def test_articles_begin_at_their_headings_alone():
    found = articles(FILE)
    assert [page.splitlines()[0] for page in found] == [" = Robert <unk> = ", " = Du Fu = "]
    assert "".join(found) == FILE[2:]  # nothing but the blank line before the first is left out
    with pytest.raises(ValueError, match="heading of an article"):
        articles("no article\n")


def test_what_tokenising_changed_is_undone():
    first, second = map(detokenized, articles(FILE))
    assert "a guest-starring role; 1,000 saw it." in first
    assert "\n== Career ==\n" in first
    assert 'He said "no" (twice), at 20\N{DEGREE SIGN}C.' in first
    assert "A formula's end." in first
    assert "a poet [of old]: the poets' own." in second


def test_perplexity_is_of_the_words_before():
    (first, second) = wikitext_rows(FILE)
    assert second["words"] == len(articles(FILE)[1].split()) + 2  # the harness counts the empty ends too
    assert second["bytes"] > len(second["text"].encode())
    parts = perplexity_parts(first, [-7.0])
    assert parts["word_perplexity"] == (-7.0, first["words"])
    assert parts["bits_per_byte"] == parts["byte_perplexity"] == (-7.0, first["bytes"])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
def test_it_is_the_harness_own_text_and_count():
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

    for page, row in zip(articles(FILE), wikitext_rows(FILE), strict=True):
        assert row["text"] == wikitext_detokenizer({"page": page})
        assert perplexity_parts(row, [-7.0]) == process_results({"page": page}, [-7.0])
