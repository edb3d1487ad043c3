"""Two processes that torchrun starts, and what they found."""

import json
import os
import subprocess
import sys


def torchrun(*arguments, **settings):
    """The command of two processes, and its environment."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return {
        "args": [str(argument) for argument in command],
        "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        **settings,
    }


class TwoProcesses:
    """What two processes found: `results[rank][strategy][what]`; and the same of one process, `one[what]`."""

    def __init__(self, folder, *strategies):
        import together

        self.folder = folder
        self.one = {model: together.curve(model, evaluated=True) for model in ("echo", "unreached")}
        self.one["kept"] = together.curve(directory=folder / "one")
        self.one["packed"] = together.curve(data=together.PackedData())
        self.one["bf16"] = together.curve(settings={"precision": "bf16"})
        self.one["dropout"] = together.curve("dropout", accumulate=2)
        done = subprocess.run(**torchrun(together.__file__, folder, *strategies, capture_output=True, text=True))
        assert done.returncode == 0, done.stderr[-4000:]
        self.results = [json.loads((folder / f"results-{rank}.json").read_text()) for rank in range(2)]
