"""The core of the loop: what a round is, what was said in it, and in which order things happen. Pure: no tensor, no socket, no file."""
