"""The archive of rollouts: every rollout that a peer generated or received, by round, in Parquet files."""
