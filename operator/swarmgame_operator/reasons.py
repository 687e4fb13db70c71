"""Every reason and every sentence that a condition of a game may have. Reasons are an interface; sentences are for
people.

A verdict is made by a function here and by nothing else, so that this file can be read as the list of all that may be
said of a game. Invariant: a reason stands in `swarmgame_api.status.REASONS` under its condition.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from swarmgame_api.status import ConditionType

MAX_MESSAGE = 2_000
Truth = Literal["True", "False", "Unknown"]


class Verdict(NamedTuple):
    """What is so of one condition, now."""

    type: ConditionType
    status: Truth
    reason: str
    message: str

    @property
    def is_true(self) -> bool:
        return self.status == "True"


def _verdict(type: ConditionType, so: bool, reason: str, message: str) -> Verdict:
    text = " ".join(message.split())
    return Verdict(
        type, "True" if so else "False", reason, text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 3]}..."
    )


# Accepted


def valid() -> Verdict:
    return _verdict("Accepted", True, "Valid", "The game is valid, and what it refers to exists.")


def invalid_game(problems: str) -> Verdict:
    return _verdict("Accepted", False, "InvalidGame", f"The game cannot be played: {problems}")


def invalid_pod_template(words: str) -> Verdict:
    return _verdict("Accepted", False, "InvalidPodTemplate", f"The peers' pods cannot be made: {words}")


def secret_not_found(missing: Iterable[str]) -> Verdict:
    return _verdict(
        "Accepted", False, "SecretNotFound", f"Missing: {'; '.join(missing)}. Create it in the game's namespace."
    )


def module_not_found(words: str) -> Verdict:
    return _verdict("Accepted", False, "ModuleNotFound", f"A module of the game is missing: {words}")


def model_not_found(words: str) -> Verdict:
    return _verdict("Accepted", False, "ModelNotFound", f"The model could not be brought into the cache: {words}")


def unsupported_cluster(words: str) -> Verdict:
    return _verdict("Accepted", False, "UnsupportedCluster", words)


def managed_externally(manager: str) -> Verdict:
    return _verdict(
        "Accepted", False, "ManagedExternally", f"spec.managedBy names {manager}; this operator leaves the game alone."
    )


# Registered


def not_required() -> Verdict:
    return _verdict("Registered", True, "NotRequired", "The game has no chain.")


def registered(count: int, desired: int, least: int) -> Verdict:
    reason = "AllRegistered" if count >= desired else "PartlyRegistered"
    return _verdict(
        "Registered", count >= least, reason, f"{count} of {desired} peers are proven on chain; {least} are needed."
    )


def rpc_unavailable(words: str) -> Verdict:
    return _verdict("Registered", False, "RPCUnavailable", f"The chain does not answer: {words}")


def wrong_chain(words: str) -> Verdict:
    return _verdict(
        "Registered", False, "WrongChain", f"The chain or the contract is not the one that the game names: {words}"
    )


def insufficient_funds() -> Verdict:
    return _verdict("Registered", False, "InsufficientFunds", "The gateway's wallet cannot pay for gas; fund it.")


def transaction_reverted(words: str) -> Verdict:
    return _verdict("Registered", False, "TransactionReverted", f"The contract rejected a registration: {words}")


# Ready


def peers_ready(ready: int, desired: int) -> Verdict:
    return _verdict("Ready", True, "PeersReady", f"{ready} of {desired} peers are in the swarm.")


def waiting_for_queue(queue: str) -> Verdict:
    return _verdict(
        "Ready", False, "WaitingForQueue", f"The Job waits to be admitted{f' by the queue {queue}' if queue else ''}."
    )


def waiting_for_peers(ready: int, desired: int, least: int) -> Verdict:
    return _verdict(
        "Ready", False, "WaitingForPeers", f"{ready} of {desired} peers are in the swarm; {least} are needed."
    )


def game_complete() -> Verdict:
    return _verdict("Ready", False, "GameComplete", "The game is over.")


def game_failed() -> Verdict:
    return _verdict("Ready", False, "GameFailed", "The game is over.")


def game_suspended() -> Verdict:
    return _verdict("Ready", False, "GameSuspended", "The game is suspended.")


def game_not_accepted() -> Verdict:
    return _verdict("Ready", False, "NotAccepted", "The game is not accepted.")


def waiting_for_bootnode() -> Verdict:
    return _verdict("Ready", False, "WaitingForBootnode", "The bootnode is not ready.")


def initializing(words: str = "") -> Verdict:
    return _verdict(
        "Ready", False, "Initializing", f"The model is being brought into the cache{f': {words}' if words else ''}."
    )


def unschedulable(pod: str, words: str) -> Verdict:
    return _verdict("Ready", False, "Unschedulable", f"No node can take the pod {pod}: {words}")


# Progressing


def round_advancing(round: int, rounds: int) -> Verdict:
    return _verdict("Progressing", True, "RoundAdvancing", f"{round} of {rounds} rounds are played.")


def starting(ready: int, desired: int) -> Verdict:
    return _verdict("Progressing", True, "ScalingUp", f"{ready} of {desired} peers are in the swarm.")


def scaling_up(active: int, desired: int) -> Verdict:
    return _verdict("Progressing", True, "ScalingUp", f"{active} of {desired} peers have a pod.")


def waiting_to_scale_up(why: str) -> Verdict:
    return _verdict("Progressing", False, "ScalingUp", f"No peer has been started: {why}")


def scaling_down(left: int, desired: int) -> Verdict:
    return _verdict("Progressing", True, "ScalingDown", f"{left} peers are leaving; {desired} are to stay.")


def scaled_down() -> Verdict:
    return _verdict("Progressing", False, "ScalingDown", "No peer runs.")


def rolling_out() -> Verdict:
    return _verdict(
        "Progressing",
        True,
        "RollingOut",
        "What the pods are made from has changed; the peers save themselves and start again.",
    )


def stalled(seconds: int, usual: int) -> Verdict:
    return _verdict(
        "Progressing",
        False,
        "Stalled",
        f"No round has ended for more than {_span(usual)}; the last one ended {_span(seconds)} ago.",
    )


def finished() -> Verdict:
    return _verdict("Progressing", False, "Finished", "The game is over.")


# Degraded


def as_expected() -> Verdict:
    return _verdict("Degraded", False, "AsExpected", "Nothing is amiss.")


def peers_failing(words: str) -> Verdict:
    return _verdict("Degraded", True, "PeersFailing", words)


def image_pull_failed(image_of: str, words: str) -> Verdict:
    return _verdict("Degraded", True, "ImagePullFailed", f"The image of {image_of} cannot be pulled: {words}")


def out_of_memory(peers: str) -> Verdict:
    message = f"Out of memory: {peers}. Raise spec.peers.resources.limits.memory, or lower what a round generates."
    return _verdict("Degraded", True, "OutOfMemory", message)


def chain_lagging(words: str) -> Verdict:
    return _verdict("Degraded", True, "ChainLagging", f"The swarm plays on, but the chain does not follow: {words}")


def checkpoint_failing(behind: int, every: int) -> Verdict:
    message = f"The newest checkpoint is {behind} rounds old, and one is due every {every}. Look at the volume, and at the peers' logs."
    return _verdict("Degraded", True, "CheckpointFailing", message)


# Suspended


def suspended_by_user() -> Verdict:
    return _verdict("Suspended", True, "SuspendedByUser", "spec.suspend is true. Keys, claims and status are kept.")


def scaled_to_zero() -> Verdict:
    return _verdict("Suspended", True, "ScaledToZero", "spec.peers.replicas is 0. Keys, claims and status are kept.")


def not_admitted(queue: str) -> Verdict:
    return _verdict(
        "Suspended", True, "NotAdmitted", f"The Job waits to be admitted{f' by the queue {queue}' if queue else ''}."
    )


def preempted() -> Verdict:
    return _verdict(
        "Suspended",
        True,
        "Preempted",
        "The Job was suspended from outside while it ran; it goes on when it is admitted again.",
    )


def resumed() -> Verdict:
    return _verdict("Suspended", False, "Resumed", "Peers may run.")


# Complete, Failed


def rounds_reached(rounds: int) -> Verdict:
    return _verdict("Complete", True, "RoundsReached", f"A peer has played all {rounds} rounds.")


def coordinator_finished(round: int) -> Verdict:
    return _verdict("Complete", True, "CoordinatorFinished", f"The chain is at round {round}.")


def all_peers_succeeded(succeeded: int, failed: int) -> Verdict:
    others = f"; {failed} have failed, which spec.failurePolicy allows" if failed else ""
    return _verdict("Complete", True, "AllPeersSucceeded", f"{succeeded} peers have played their last round{others}.")


def deadline_exceeded(seconds: int) -> Verdict:
    return _verdict(
        "Failed", True, "DeadlineExceeded", f"The game ran longer than spec.activeDeadlineSeconds, {seconds}."
    )


def pre_running_deadline_exceeded(seconds: int, why: str) -> Verdict:
    message = f"The first round did not begin within spec.preRunningDeadlineSeconds, {seconds}. Last known: {why}"
    return _verdict("Failed", True, "PreRunningDeadlineExceeded", message)


def too_many_failed_peers(failed: int, allowed: int, words: str) -> Verdict:
    message = f"{failed} peers have failed for good; spec.failurePolicy allows {allowed}.{f' {words}' if words else ''}"
    return _verdict("Failed", True, "TooManyFailedPeers", message)


def fatal_exit_code(words: str) -> Verdict:
    return _verdict("Failed", True, "FatalExitCode", words)


def _span(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7_200 else f"{seconds // 3_600} h"
