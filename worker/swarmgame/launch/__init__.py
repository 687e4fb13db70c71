"""Starting peers: the local runner, `swarmgame join`, the entry of a pod, and the bootnode."""
