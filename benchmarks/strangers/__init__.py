"""Honest peers and untrusted ones in one process, for `influence.py`."""
