"""`kubectl swarmgame`: how a swarm is doing, for a person at a terminal, and its models."""
