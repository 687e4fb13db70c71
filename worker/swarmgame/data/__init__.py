"""Data managers: where the questions of a round come from."""
