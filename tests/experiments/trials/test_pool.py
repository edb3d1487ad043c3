"""Jobs in processes: results, display, failures, and that nothing outlives the pool."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pool_jobs
import pytest
from rich.console import Console

from echo_ska.experiments.trials.pool import ALLOCATOR, Job, JobError, run_jobs


def test_results_come_back_by_name_and_progress_is_shown() -> None:
    screen = io.StringIO()
    seen: list[str] = []
    results = run_jobs(
        [Job("six", pool_jobs.multiply, {"number": 1}), Job("twelve", pool_jobs.multiply, {"number": 2})],
        Console(file=screen, force_terminal=True, width=100),
        on_result=lambda name, _: seen.append(name),
        cores=2,
    )
    assert list(results) == ["six", "twelve"]
    assert [results[name]["product"] for name in results] == [6, 12]
    assert [results[name]["threads"] for name in results] == [1, 1]
    assert sorted(seen) == ["six", "twelve"]
    assert "six: counting" in screen.getvalue()
    assert "twelve: finished after" in screen.getvalue()


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (pool_jobs.fail, "The job bad failed (ValueError): the ridge is below zero."),
        (pool_jobs.vanish, "The job bad failed: its process ended without a result, with exit code 3."),
    ],
)
def test_a_failing_job_is_named_and_the_others_end(function: object, sentence: str, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    jobs = [
        Job("sleeper", pool_jobs.sleep, {"pid_file": pid_file}),
        Job("bad", function, {"after": pid_file}),  # type: ignore[arg-type]
    ]
    with pytest.raises(JobError) as caught:
        run_jobs(jobs, Console(file=io.StringIO()), cores=2)
    assert str(caught.value) == sentence
    if function is pool_jobs.fail:
        assert "pool_jobs.py" in caught.value.__notes__[0]
    assert not _alive(int(pid_file.read_text()))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_jobs_end_with_their_parent(number: signal.Signals, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = (
        # A shell that runs the tests in the background has them, and so this program, ignore SIGINT.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from pathlib import Path\n"
        "import pool_jobs\n"
        "from rich.console import Console\n"
        "from echo_ska.experiments.trials.pool import Job, run_jobs\n"
        "if __name__ == '__main__':\n"
        f"    run_jobs([Job('sleeper', pool_jobs.sleep, {{'pid_file': Path({str(pid_file)!r})}})], Console())\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    try:
        _wait(pid_file.exists, 60)
        parent.send_signal(number)
        _, errors = parent.communicate(timeout=20)
    finally:
        parent.kill()
    _wait(lambda: not _alive(int(pid_file.read_text())), 10)
    assert errors.count("Traceback") <= 1  # the parent's own; its jobs are quiet


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_a_job_keeps_its_memory_unless_somebody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = []
    for outside, inside in ((None, ALLOCATOR), ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0")):
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if outside is not None:
            monkeypatch.setenv("GLIBC_TUNABLES", outside)
        found = run_jobs([Job("job", pool_jobs.allocator)], Console(file=io.StringIO()), cores=1)["job"]
        assert os.environ.get("GLIBC_TUNABLES") == outside
        assert found["settings"] == inside
        (started_with,) = found["started with"]  # glibc has cut it at the colons
        assert started_with
        assert inside.startswith(started_with)
        numbers.append(found["numbers"])
    assert numbers[0] == numbers[1]


def test_two_jobs_of_one_name_are_refused() -> None:
    jobs = [Job("twin", pool_jobs.multiply, {"number": 1})] * 2
    with pytest.raises(ValueError, match="name of its own"):
        run_jobs(jobs, Console(file=io.StringIO()))


def _alive(pid: int) -> bool:
    try:
        # An ended process that nobody has waited for still has its number, and "Z" in its state.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        if Path("/proc/self").exists():
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait(condition: object, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
