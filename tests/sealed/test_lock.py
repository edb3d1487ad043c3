import errno
import subprocess
import sys

import pytest

from echo_ska.sealed import lock, locked_folder

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="this system locks no folders")

HOLDER = """
import sys, time
from pathlib import Path
from echo_ska.sealed import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_holds_a_folder_and_nothing_is_written(tmp_path):
    with locked_folder(tmp_path, wait=False) as held:
        assert held
        with pytest.raises(BlockingIOError), locked_folder(tmp_path, wait=False):
            pass
    with locked_folder(tmp_path, wait=False):
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), locked_folder(tmp_path / "absent"):
        pass


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), locked_folder(tmp_path, wait=False):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locked_folder(tmp_path, wait=False) as held:
        assert held


def test_a_file_system_without_locks_is_worked_on_without_one(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with locked_folder(tmp_path, wait=False) as held:
        assert not held
