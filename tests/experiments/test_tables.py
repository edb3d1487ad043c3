"""The tables in README.md and docs/ are those that results/ gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from echo_ska.experiments import tables

CHECKOUT = Path(__file__).parents[2]


def test_every_table_is_up_to_date(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(CHECKOUT)
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_only_what_stands_between_marks_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tables.TABLES, "one", lambda: tables.markdown([["a", "b"], ["1", "2"]]))
    text = "before\n<!-- table: one -->\nold\n<!-- end -->\nafter\n"
    filled = tables.fill(text)
    assert filled == ("before\n<!-- table: one -->\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n<!-- end -->\nafter\n")
    assert tables.fill(filled) == filled
    with pytest.raises(ValueError, match="there is no table 'two': choose from claims, demo"):
        tables.fill(text.replace("one", "two"))
