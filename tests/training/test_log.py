import json

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
