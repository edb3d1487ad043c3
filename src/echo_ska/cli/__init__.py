"""The command line, `echo-ska`: what the commands take. What they do stands in `echo_ska.commands`.

torch and transformers are imported inside the commands, so that `--help` and a bad path answer at once.
"""

from echo_ska.cli.root import app as app
from echo_ska.cli.root import main

__all__ = ["main"]
