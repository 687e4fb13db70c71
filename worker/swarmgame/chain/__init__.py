"""On-chain coordination: a peer's registration and reports. It runs beside the game loop and never blocks it."""
