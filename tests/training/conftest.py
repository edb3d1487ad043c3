import sys
from pathlib import Path

import pytest

# For `tiny_model` and `together`, which other processes run too, and `launched`.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """DDP and FSDP in two processes on this CPU, all of it in one launch, for launching is slow."""
    from launched import TwoProcesses

    return TwoProcesses(tmp_path_factory.mktemp("two"), "ddp", "fsdp")
