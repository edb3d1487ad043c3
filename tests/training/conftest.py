import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `tiny_model`, which a subprocess runs as a script too
