import io
import queue

import pytest
from rich.console import Console

from echo_ska.training import (
    LineReporter,
    ProgressReporter,
    QueueReporter,
    console_reporter,
    training_progress,
)
from echo_ska.training.reporter import format_seconds

FIGURES = {"loss": 1.5, "accuracy": 0.25, "tokens_per_second": 12345.6}


def test_lines_say_loss_accuracy_speed_and_time_left():
    stream = io.StringIO()
    reporter = LineReporter(stream, "ssm", seconds=0)
    reporter.update(0, 100, {})
    reporter.update(50, 100, FIGURES)
    [line] = stream.getvalue().splitlines()
    assert line.startswith("ssm: step 50/100  loss 1.500  accuracy 25.0 %  12,346 tokens/s  0:00 left")


def test_what_has_no_figures_shows_how_far_it_is():
    stream = io.StringIO()
    reporter = LineReporter(stream, "reading", seconds=0)
    for step in (0, 500, 1000):
        reporter.update(step, 1000, {})
    assert stream.getvalue().splitlines() == [
        "reading: step 500/1,000  0:00 left",
        "reading: step 1,000/1,000  0:00 left",
    ]


def test_lines_are_rare_but_the_last_one_comes():
    stream = io.StringIO()
    reporter = LineReporter(stream, seconds=3600)
    for step in range(11):
        reporter.update(step, 10, FIGURES)
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["0/10", "10/10"]


def test_several_trainings_share_a_display():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with training_progress(console) as progress:
        for name in ("ssm", "ssm+ska"):
            reporter = ProgressReporter(progress, name)
            reporter.update(40, 100, {})
            reporter.update(50, 100, FIGURES)
    shown = console.file.getvalue()
    assert "ssm+ska" in shown
    assert "50/100" in shown
    assert "accuracy 25.0 %" in shown


def test_messages_go_through_a_queue():
    messages = queue.Queue()
    QueueReporter(messages, "ssm").update(1, 2, FIGURES)
    assert messages.get_nowait() == ("ssm", 1, 2, FIGURES)


@pytest.mark.parametrize(("terminal", "kind"), [(True, ProgressReporter), (False, LineReporter)])
def test_the_console_decides(terminal, kind):
    with console_reporter(console=Console(file=io.StringIO(), force_terminal=terminal)) as reporter:
        assert isinstance(reporter, kind)


def test_durations():
    assert [format_seconds(s) for s in (5, 65, 7205)] == ["0:05", "1:05", "2:00:05"]
