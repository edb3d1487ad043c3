"""The page holds every claim, nothing but itself, and no text of a record as markup."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import made_up

from echo_ska.experiments.claims import CLAIMS, Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.report import write_report
from echo_ska.training.records import append

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Parsed(HTMLParser):
    """Checks that tags close in order; keeps elements, ids and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, other, value in self.attributes if other == name]


def test_the_page_is_whole_and_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 2_000_000
    parsed = Parsed(text)
    assert parsed.elements["script"] == 0
    assert ("html", "lang", "en") in parsed.attributes
    assert parsed.elements["title"] >= 1
    for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
        for value in parsed.values(name):
            assert value.startswith(("#", "data:")), f"{name}={value}"
    for value in re.findall(r"url\(([^)]*)\)", text):
        assert value.startswith("#")
    assert "@import" not in text
    assert "default-src 'none'" in text
    ids = parsed.values("id")
    assert len(set(ids)) == len(ids)
    for target in [*parsed.values("href"), *parsed.values("xlink:href")]:
        if target.startswith("#"):
            assert target[1:] in ids
    for target in " ".join(parsed.values("aria-labelledby")).split():
        assert target in ids


def test_every_claim_appears_with_its_verdict_and_its_thresholds(page):
    shown = " ".join(" ".join(Parsed(page.read_text(encoding="utf-8")).text).split()).replace("\N{NO-BREAK SPACE}", " ")
    for claim in CLAIMS:
        assert shown.count(claim.title) >= 2  # at the top, and where it is treated
        assert claim.statement in shown
        for text in (*claim.caveats, *(criterion.text for criterion in claim.criteria), *claim.commands):
            assert text in shown
    for words in ("not measured yet", "reproduced", "partly"):
        assert words in shown


def test_tables_and_pictures_have_a_text_beside_them(page):
    parsed = Parsed(page.read_text(encoding="utf-8"))
    assert parsed.elements["caption"] == parsed.elements["table"]
    assert parsed.elements["svg"] >= 4
    assert [value for tag, name, value in parsed.attributes if tag == "svg" and name == "role"].count("img") == (
        parsed.elements["svg"]
    )
    cells = [1 for tag, name, value in parsed.attributes if tag == "th" and name == "scope" and value in ("row", "col")]
    assert len(cells) == parsed.elements["th"]


HOSTILE = '<script>alert("1")</script>&'


def test_no_text_of_a_record_becomes_markup(tmp_path: Path):
    record = replace(
        made_up("tiny", {}, {}),
        hardware={"cpu": HOSTILE, "cores": 1, "threads": 1, "gpu": None},
        commit=HOSTILE,
        date=HOSTILE,
        versions={"torch": HOSTILE, "python": HOSTILE},
    )
    claim: Claim[str] = Claim(
        key="tiny",
        title=HOSTILE,
        statement=HOSTILE,
        source=HOSTILE,
        commands=(HOSTILE,),
        gather=lambda _: Evidence(HOSTILE, (record,)),
        criteria=(Criterion(HOSTILE, lambda text: Finding(True, text), HOSTILE),),
        summary=lambda text: text,
        tables=lambda text: [Table(text, [[text], [text]])],
        draw=_draw,
        picture=HOSTILE,
        caveats=(HOSTILE,),
    )
    write_report(tmp_path, tmp_path / "page.html", [claim])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert Parsed(text).elements["script"] == 0
    assert text.count("&lt;script&gt;") >= 15


def _draw(text: str, path: Path) -> None:
    from matplotlib.figure import Figure

    from echo_ska.experiments.trials.figures import save

    figure = Figure(figsize=(2, 2))
    figure.subplots().set_title(text)
    save(figure, path)


def test_damaged_records_leave_an_older_page_as_it_is(tmp_path):
    append(
        made_up("bench", {"name": "full", "device": "cpu"}, {"decoding": {"ska": {"1024": {}}}}),
        tmp_path / "bench.jsonl",
    )
    (tmp_path / "page.html").write_text("older")
    with pytest.raises(ValueError, match=r"records of claim 7 .* lack figures"):
        write_report(tmp_path, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.jsonl", "page.html"]
