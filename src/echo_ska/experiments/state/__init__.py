"""What is kept and what is sent: bytes of the state by length, bytes between the processes that share a sequence."""
