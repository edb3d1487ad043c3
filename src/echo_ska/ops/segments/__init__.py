"""The parallel PyTorch route: the tokens of a segment at once, segment after segment, forward and backward."""
