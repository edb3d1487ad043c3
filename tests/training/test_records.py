import json
import subprocess
import sys
from pathlib import Path

import pytest

import echo_ska
from echo_ska.training import make_record, records


def record(**figures):
    return make_record("test", {"steps": 3}, figures, seed=1, seconds=2.5)


def test_records_are_appended_and_read_back(tmp_path):
    path = tmp_path / "results" / "runs.jsonl"
    first, second = record(loss=0.5), record(loss=0.25)
    records.append(first, path)
    records.append(second, path)
    assert records.read(path) == [first, second]
    assert len(path.read_text().splitlines()) == 2


def test_a_record_that_the_disk_has_no_room_for_leaves_no_part_of_itself(tmp_path):
    resource = pytest.importorskip("resource")
    path, record = tmp_path / "records.jsonl", make_record("x", {}, {}, seed=0, seconds=1)
    records.append(record, path)
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
        with pytest.raises(OSError, match="make room on the disk"):
            records.append(record, path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole), limits[1]))
        with pytest.raises(OSError, match=r"written to .*records.jsonl \(File too large\): make room on the disk"):
            records.append(record, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    records.append(record, path)
    assert records.read(path) == [record, record]


def test_a_record_says_where_it_was_made():
    made = record()
    assert made.hardware["cpu"]
    assert made.hardware["cores"] >= 1
    assert made.hardware["threads"] == 1
    assert made.versions["echo_ska"] == echo_ska.__version__
    assert made.versions["python"] == sys.version.split()[0]
    assert made.date.endswith("+00:00")
    if sys.platform != "win32":
        assert 10**7 < made.peak_memory_bytes < 10**12


@pytest.mark.parametrize(
    ("quota", "most"),
    [(None, 8), ("max 100000\n", 8), ("250000 100000\n", 3), ("900000 100000\n", 8), ("9 100000\n", 1)],
)
def test_a_containers_quota_counts(tmp_path, monkeypatch, quota, most):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(records, "QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert records.usable_cores() == records.describe_hardware()["cores"] == most


def test_commit_is_the_checkouts_and_only_the_checkouts(tmp_path, monkeypatch):
    package = tmp_path / "src" / "echo_ska"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(echo_ska, "__file__", str(package / "__init__.py"))
    assert records.checkout_state() == (None, None)

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", tmp_path, *identity, *arguments], capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert records.checkout_state() == (git("rev-parse", "HEAD"), False)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs.jsonl").write_text("")
    git("add", ".")
    assert records.checkout_state()[1] is False  # a record of one run does not make the next one dirty
    (package / "__init__.py").write_text("changed = True\n")
    assert records.checkout_state()[1] is True
    installed = tmp_path / "venv" / "echo_ska"
    installed.mkdir(parents=True)
    monkeypatch.setattr(echo_ska, "__file__", str(installed / "__init__.py"))
    assert records.checkout_state() == (None, None)


def test_numbers_that_json_lacks_become_null(tmp_path):
    path = tmp_path / "runs.jsonl"
    records.append(record(loss=float("nan"), rows=[1.0, float("inf")]), path)
    assert json.loads(path.read_text())["figures"] == {"loss": None, "rows": [1.0, None]}


def test_a_broken_line_is_named(tmp_path):
    path = Path(tmp_path) / "runs.jsonl"
    records.append(record(), path)
    with path.open("a") as file:
        file.write('{"name": "cut of')
    with pytest.raises(ValueError, match=r"Line 2 of .*runs.jsonl is not a run record"):
        records.read(path)
