"""The operator: a SwarmGame becomes a Job of peers and what they need, and its status says how they are."""
