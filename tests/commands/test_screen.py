"""Tables lose nothing where no terminal reads them."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table

from echo_ska.commands.screen import screen

LABEL = "a row with a label that is a good deal longer than what eighty columns leave for it " * 2


@pytest.fixture
def shown(monkeypatch):
    """What is printed of a table of that label and a number."""

    def shown(terminal):
        stream = io.StringIO()
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdout", stream)
        table = Table("row", "seconds")
        table.columns[0].no_wrap = True
        table.add_row(LABEL, "0.123")
        screen().print(table)
        return stream.getvalue()

    monkeypatch.delenv("COLUMNS", raising=False)
    return shown


def test_a_table_that_is_piped_is_whole(shown):
    whole = shown(terminal=False)
    assert LABEL in whole
    assert "0.123" in whole
    assert "…" not in whole


@pytest.mark.parametrize("columns", ["60", "100"])
def test_a_width_that_was_told_is_kept(shown, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for terminal in (True, False):
        assert len(shown(terminal).splitlines()[0]) == int(columns)


def test_a_command_prints_its_table_whole(run, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    piped = run("models").stdout
    assert "…" not in piped
    monkeypatch.setenv("COLUMNS", "50")
    assert "…" in run("models").stdout
