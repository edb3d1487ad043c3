import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `in_process`, and `pool_jobs`, which other processes import too
