import json

import pytest

from echo_ska.training.log import TrainingLog


def test_truncation_keeps_the_steps_done_and_drops_a_torn_line(tmp_path):
    log = TrainingLog(tmp_path / "run" / "log.jsonl")
    log.truncate(3)  # nothing to do yet
    for step in range(1, 6):
        log.append({"step": step, "loss": 1 / step})
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')
    log.truncate(3)
    log.append({"step": 4})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2, 3, 4]
    assert [path.name for path in log.path.parent.iterdir()] == ["log.jsonl"]


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    path = tmp_path / "log.jsonl"
    for content in ("my precious log\nof many lines\n", "one line", '{"a": 1}\n{"step": 2}\n'):
        path.write_text(content)
        with pytest.raises(ValueError, match="was not written by a training: move it away"):
            TrainingLog(path).truncate(0)
        assert path.read_text() == content
