import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `context_models`, which other processes run as a script too
