"""The operator: creates the Job of peers and the other objects of a SwarmGame, and writes its status."""
