"""Failure: when the game is over and did not go well, for other reasons than time.

The Job counts, by peer, and obeys the exit codes; here its verdict is put into the game's words. Invariant: a
disruption is never a failure.
"""

from __future__ import annotations

from swarmgame_operator import reasons
from swarmgame_operator.plan.peer_job import FATAL_EXIT_CODES
from swarmgame_operator.plan.scene import Scene, job_says, last_words
from swarmgame_operator.reasons import Verdict


def failure(scene: Scene) -> Verdict | None:
    """The game's bad end, if this is it."""
    reason = job_says(scene.job, "Failed", "FailureTarget")
    initializer = job_says(scene.observed.initializer, "Failed", "FailureTarget")
    if reason == "PodFailurePolicy" or (initializer == "PodFailurePolicy" and _initializer_was_fatal(scene)):
        return reasons.fatal_exit_code(_fatal_words(scene))
    if reason is not None:
        failed = len(scene.failed_indexes)
        return reasons.too_many_failed_peers(failed, scene.spec.failure_policy.max_failed_peers, _why(scene))
    return None


def _initializer_was_fatal(scene: Scene) -> bool:
    return any(
        container.exit_code in FATAL_EXIT_CODES
        for pod in scene.observed.pods_of("initializer")
        for container in pod.containers
    )


def _fatal_words(scene: Scene) -> str:
    if scene.fatal is None:
        return "A peer ended with an exit code that says the game cannot be played; its pod is gone."
    pod, container = scene.fatal
    return f"The pod {pod.name} says that the game cannot be played: {last_words(container)}"


def _why(scene: Scene) -> str:
    """The last words of one that failed."""
    for pod in scene.peer_pods:
        for container in pod.containers:
            if pod.phase == "Failed" and not pod.disrupted and container.exit_code:
                return f"Peer {pod.index}: {last_words(container)}"
    return ""
