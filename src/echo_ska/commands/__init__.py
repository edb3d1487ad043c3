"""What the commands of `echo-ska` do; `echo_ska.cli` says how they are called."""
