"""The game loop: state, rounds, stages and verification. Pure: no tensors, no sockets, no files."""
