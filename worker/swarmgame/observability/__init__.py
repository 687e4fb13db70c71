"""What a peer shows: metrics, status, HTTP endpoints, logs, and the files of a run directory."""
