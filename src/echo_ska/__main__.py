"""`python -m echo_ska` is the command `echo-ska`: for `torchrun -m echo_ska train ...`."""

from echo_ska.cli import main

if __name__ == "__main__":
    main()
