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
    for content in (
        "my precious log\nof many lines\n",
        "one line",
        '{"a": 1}\n{"step": 2}\n',
        '{"note": "results of six weeks"}\n',
        '{"note": "without a line break"}',
        '{"step": 2}\n{"note": "behind a line of ours"}\n',
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match="was not written by a training: move it away"):
            TrainingLog(path).truncate(0)
        assert path.read_text() == content


def test_a_log_without_checkpoints_is_kept_beside(tmp_path):
    log = TrainingLog(tmp_path / "log.jsonl")
    for number in (1, 2):
        log.append({"step": number})
        log.truncate(0)
        assert not log.path.exists()
        assert (tmp_path / f"log-{number}.jsonl").read_text() == f'{{"step": {number}}}\n'
    for first_words in ("", '{"st', '{"step": 3, "lo'):  # a kill while the first line was written
        log.path.write_text(first_words)
        log.truncate(0)
        assert log.path.read_text() == ""
    assert len(list(tmp_path.iterdir())) == 3


def test_a_last_line_is_torn_where_it_does_not_parse_or_does_not_end(tmp_path):
    log = TrainingLog(tmp_path / "log.jsonl")
    for torn in ('{"step": 2, "lo', '{"step": 2}', '{"step": 2, "lo\n', "\0\0\0"):
        log.path.write_text('{"step": 1}\n' + torn)
        log.truncate(2)
        assert log.path.read_text() == '{"step": 1}\n'


def test_an_evaluation_takes_the_place_of_another_one(tmp_path):
    log = TrainingLog(tmp_path / "log.jsonl")
    lines = [{"step": 1}, {"step": 1, "evaluation": {"a": 1}}, {"step": 2}]
    for line in lines:
        log.append(line)
    for value in (1, 2):
        log.replace_evaluation({"step": 2, "evaluation": {"a": value}})
        assert log.has({"step": 2, "evaluation": {"a": value}})
        found = [json.loads(line) for line in log.path.read_text().splitlines()]
        assert found == [*lines, {"step": 2, "evaluation": {"a": value}}]


def test_a_log_behind_a_link_is_shortened_there(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("kept.jsonl")
    log = TrainingLog(tmp_path / "log.jsonl")
    for step in range(1, 4):
        log.append({"step": step})
    log.truncate(2)
    assert log.path.is_symlink()
    assert (tmp_path / "kept.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_full_disk_is_told_and_leaves_the_log_as_it_was(tmp_path):
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    log = TrainingLog(tmp_path / "log.jsonl")
    for step in range(1, 4):
        log.append({"step": step})
    before, limits = log.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        for write in (lambda: log.truncate(2), lambda: log.append({"step": 4})):
            with pytest.raises(OSError, match=r"log.jsonl could not be written \(File too large\): make room, or see"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
