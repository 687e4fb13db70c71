"""Transports: how bytes get from one peer to another (memory, libp2p through hivemind, torch.distributed)."""
