"""The origin of a saved policy: the tokenizer and the base model that it began with.

A checkpoint of adapters holds only their weights, and the KL term compares with the base model; over other files both
would go on as another policy, without a sign. A complete policy keeps its weights, but not its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmgame.models.fingerprint import commit_of, other_base
from swarmgame.trainer.grpo.policy import Policy


def origin_of(policy: Policy) -> dict[str, str]:
    """Return what a checkpoint records of a policy's origin."""
    source = policy.source
    return {"tokenizer": policy.hash, "model": source.uri, "base": policy.base, "commit": commit_of(source)}


def check_origin(state: Mapping[str, Any], policy: Policy) -> None:
    """Check that a saved policy began with this model. A checkpoint of an earlier release does not name its base.

    Raises:
        ValueError: it began with another one; with both fingerprints, and what to do.
    """
    if state["tokenizer"] != policy.hash:
        raise ValueError(
            f"the saved policy has tokenizer {state['tokenizer']}, this model {policy.hash}: it is another model"
        )
    saved = state.get("base", "")
    if saved and saved != policy.base:
        uri = policy.source.uri
        raise ValueError(other_base((state.get("model", uri), saved), (uri, policy.base), state.get("commit", "")))
