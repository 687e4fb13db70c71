"""Environments: the built-in ones, and how they are played in the sandbox."""
