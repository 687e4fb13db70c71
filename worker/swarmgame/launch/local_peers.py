"""What each peer of a local run gets: its key, its port, its CUDA devices, its environment and its command.

Keys derive from the game's seed and the peer's index, so that equal manifests ask equal questions: a peer's questions
and samples depend on its id. Such a key is no secret. That does no harm while the peers listen on this machine only and
belong to no other swarm; where others can reach them (`outsiders`), new keys are random.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from swarmgame.errors import BadUsage, writing
from swarmgame.launch.reachable import host_for_others
from swarmgame.observability.run_directory import PeerDirectory, RunDirectory
from swarmgame.swarm.identity import Identity, dial_address
from swarmgame.swarm.network_options import ANY_HOSTS, NetworkOptions
from swarmgame_api.manifest import SwarmGame
from swarmgame_common.parent_death import VARIABLE
from swarmgame_common.sockets import listening_socket

HOST = "127.0.0.1"
"""This machine only."""
DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """The peers' ids and ports, by index, and the address on which they listen."""

    ids: Sequence[str]
    ports: Sequence[int]
    host: str = HOST

    @property
    def addresses(self) -> list[str]:
        """Where the peers reach each other."""
        return self._at(HOST if self.host in ANY_HOSTS else self.host)

    @property
    def addresses_for_others(self) -> list[str]:
        """Where other peers reach them."""
        return self._at(host_for_others(self.host))

    def _at(self, host: str) -> list[str]:
        return [dial_address(peer, port, host) for peer, port in zip(self.ids, self.ports, strict=True)]

    def others_of(self, index: int) -> tuple[str, ...]:
        """Return the ids of the other peers, which count from the start."""
        return (*self.ids[:index], *self.ids[index + 1 :])

    def options_of(self, index: int, manifest: SwarmGame, directory: PeerDirectory) -> NetworkOptions:
        """Return the network options of one peer."""
        if manifest.spec.communication.backend == "TorchDistributed":
            return NetworkOptions(directory.key, rendezvous=f"{HOST}:{self.ports[0]}")
        others = (*self.addresses[:index], *self.addresses[index + 1 :])
        return NetworkOptions(directory.key, host=self.host, port=self.ports[index], initial_peers=others)


# ── keys


def outsiders(manifest: SwarmGame, host: str = HOST) -> str:
    """Return how peers outside this run can take part in it, as a sentence; empty where they cannot."""
    if not _is_loopback(host):
        return f"the peers listen on {host}, which other machines can reach"
    if manifest.spec.communication.initial_peers:
        return "communication.initialPeers names peers of another swarm"
    if manifest.spec.coordination.mode == "External":
        return "coordination.mode is External: the peers' reports are on a chain that others use"
    return ""


def derived_identity(seed: int, index: int) -> Identity:
    """Return the key of a local peer: HKDF-SHA256 (RFC 5869) of the game's seed, with the index in the info.

    Whoever knows the manifest knows the key.
    """
    derivation = HKDF(algorithm=SHA256(), length=32, salt=b"swarmgame", info=f"key of local peer {index}".encode())
    return Identity(derivation.derive(seed.to_bytes(8, "big")))


def load_or_create_key(directory: PeerDirectory, seed: int, index: int, *, secret: bool) -> tuple[Identity, bool]:
    """Return the key of a peer, and whether a derived one was replaced.

    Args:
        secret: whether the key must be random. A run that began on this machine only may go on with outsiders.
    """
    derived = derived_identity(seed, index)
    if not secret:
        return Identity.load_or_create(directory.key, lambda: derived), False
    found = Identity.load_or_create(directory.key)
    if found.peer != derived.peer:
        return found, False
    with writing(directory.key):
        directory.key.unlink()
    return Identity.load_or_create(directory.key), True


def allocate_network(
    manifest: SwarmGame,
    directory: RunDirectory,
    host: str = HOST,
    *,
    random_keys: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> LocalNetwork:
    """Create the keys that are missing, and choose a port for each peer.

    Args:
        random_keys: make new keys random although no other peer can take part.
        notify: gets a sentence where keys are replaced.
    """
    peers = manifest.spec.peers.replicas
    why = outsiders(manifest, host) or ("--random-keys is given" if random_keys else "")
    keys = [
        load_or_create_key(directory.peer(index), manifest.spec.game.seed, index, secret=bool(why))
        for index in range(peers)
    ]
    if any(replaced for _, replaced in keys):
        notify(f"the peers get new, random keys, since {why}: those of the run so far derive from the seed")
    ports = free_ports(peers, HOST if host in ANY_HOSTS else host)
    return LocalNetwork([identity.peer for identity, _ in keys], ports, host)


def check_host(host: str) -> None:
    """Check that this machine can listen on an address.

    Raises:
        BadUsage: it is not an address of this machine.
    """
    try:
        free_ports(1, str(ip_address(host)))
    except (ValueError, OSError) as error:
        raise BadUsage(f"--host is {host!r}; expected an IP address of this machine, or 0.0.0.0 ({error})") from error


def free_ports(count: int, host: str = HOST) -> list[int]:
    """Return that many different TCP ports on which no process listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(listening_socket(host, 0)) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


# ── processes, threads and devices


@dataclass(frozen=True, slots=True)
class Machine:
    """What the peers of a run share.

    Args:
        cores: that this process may use.
        devices: CUDA devices that this process may use, by the names of CUDA_VISIBLE_DEVICES.
    """

    cores: int
    devices: tuple[str, ...] = ()

    def processes_of(self, manifest: SwarmGame) -> int:
        """Return the number of processes of one peer. `auto`: one for each of its devices, and at least one."""
        processes = manifest.spec.peers.processes_per_peer
        return max(1, len(self.devices) // manifest.spec.peers.replicas) if processes == "auto" else processes

    def devices_of(self, index: int, processes: int) -> tuple[str, ...]:
        """Return the devices of one peer: the peers take them in turn, each as many as it has processes."""
        taken = [index * processes + rank for rank in range(processes)]
        return tuple(dict.fromkeys(self.devices[each % len(self.devices)] for each in taken)) if self.devices else ()

    def threads_of(self, peers: int, processes: int) -> int:
        """Return the threads of one process, so that all together use the cores, and no more."""
        return max(1, self.cores // (peers * processes))

    def environment_of(self, index: int, peers: int, processes: int) -> Mapping[str, str]:
        """Return the environment of one peer."""
        devices = self.devices_of(index, processes)
        return {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads_of(peers, processes)),
            VARIABLE: "1",
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **({DEVICES_VARIABLE: ",".join(devices)} if devices else {}),
        }


def this_machine() -> Machine:
    """Return the cores and the CUDA devices of this process."""
    import torch

    devices = visible_devices(os.environ.get(DEVICES_VARIABLE), torch.cuda.device_count())
    return Machine(len(os.sched_getaffinity(0)), devices)


def visible_devices(setting: str | None, count: int) -> tuple[str, ...]:
    """Return the names of the devices that a process sees.

    Args:
        setting: the value of CUDA_VISIBLE_DEVICES: indices, or names that begin with GPU- or MIG-; None where unset.
        count: how many CUDA finds. It ignores everything from the first name that is no device.
    """
    names = [str(index) for index in range(count)] if setting is None else [name.strip() for name in setting.split(",")]
    return tuple(names[:count])
