"""A run that is not the one that is asked for is told apart in the words of the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from echo_ska.commands.other_options import other_options


def said(differing, **asked):
    request = SimpleNamespace(output=Path("runs/mine"), **{"data": None, "task": None} | asked)
    sentence = other_options(request, differing)
    begun = "but the run in runs/mine was begun with"
    end = ": give the same options to go on with it, or another --output."
    assert sentence.endswith(end)
    now, was = sentence.removesuffix(end).split(f", {begun} ")
    return now, was


@pytest.mark.parametrize(
    ("differing", "asked", "now", "was"),
    [
        ({"training.seed": (0, 1), "data.seed": (0, 1)}, {}, "--seed 1", "--seed 0"),
        (
            {"training.steps": (500, 10), "data.batch_size": (32, 2)},
            {},
            "--steps 10 and --batch-size 2",
            "--steps 500 and --batch-size 32",
        ),
        ({"data.blake2b": ("a", "b"), "data.files": (1, 2)}, {}, "this text (--text, --held-out)", "another"),
        ({"data.sha256": ("a", "b")}, {"data": Path("c")}, "this corpus (--data)", "another"),
        ({"model.rank": (16, 8)}, {}, "rank 8 (--model, --set)", "rank 16"),
        ({"data.pairs": (4, 8)}, {"task": "mqar"}, "--task-set pairs=8", "pairs=4"),
        (
            {"data.task": ("MultiQueryRecall", "Needle"), "data.needles": (None, 3), "model.vocab_size": (9, 8)},
            {"task": "needle"},
            "--task needle",
            "--task mqar",
        ),
        (
            {"data.blake2b": ("a", None), "data.task": (None, "Needle"), "data.length": (256, None)},
            {"task": "needle"},
            "--task needle",
            "--text",
        ),
        (
            {f"model.{name}": (1, 2) for name in "abcde"},
            {},
            "a 2 (--model, --set) and b 2 (--model, --set) and c 2 (--model, --set)",
            "a 1 and b 1 and c 1 (and 2 more differ)",
        ),
        ({"optimizer.trained_parameters": (["a"], ["b"])}, {}, "other parameters to train", "its own"),
    ],
)
def test_what_differs_is_told_by_its_option(differing, asked, now, was):
    assert said(differing, **asked) == (now, was)
