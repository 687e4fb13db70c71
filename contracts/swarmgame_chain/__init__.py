"""The Python side of the chain."""
