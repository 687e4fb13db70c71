"""On-chain coordination: registration and reports of a peer. It runs beside the loop and never blocks it."""
