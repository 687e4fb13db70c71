"""Metrics, status, HTTP endpoints and the files of a run directory."""
