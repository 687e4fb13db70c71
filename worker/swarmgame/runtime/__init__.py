"""One peer as a process: assembly of its components, checkpoints, ranks, and the main loop."""
