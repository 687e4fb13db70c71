"""Signed messages: registrations, commits and reports, as EIP-712, and the keys that sign them.

`signing` holds keys, signatures and peer ids; `base` defines what a kind of message must implement; `registration`,
`report` and `commit` are the kinds. `KINDS` lists them, and the gateway iterates over it: a new kind is one new
module, one entry here, and its function in the contract.
"""

from swarmgame_chain.messages.base import MAX_ROUNDS_AHEAD, TOO_EARLY, Action, ChainState, Decision, SignedMessage
from swarmgame_chain.messages.commit import Commit, sign_commit
from swarmgame_chain.messages.registration import Registration, proves, sign_registration
from swarmgame_chain.messages.report import MAX_VOTES, Report, sign_report
from swarmgame_chain.messages.signing import (
    MAX_PEER_ID,
    Domain,
    address_of,
    is_peer_id,
    peer_id,
    public_key,
    recover,
    sign,
)

MessageKind = type[SignedMessage]
KINDS: list[MessageKind] = [Registration, Report, Commit]
"""In the order in which they are sent. A gateway that knew only later seals could end the round in which a report must
be opened, so that reports come before commits."""


def kind_of_path(path: str) -> MessageKind:
    """Return the kind that is submitted under `/v1/PATH`.

    Raises:
        KeyError: there is none.
    """
    return {kind.path: kind for kind in KINDS}[path]


__all__ = [
    "KINDS",
    "MAX_PEER_ID",
    "MAX_ROUNDS_AHEAD",
    "MAX_VOTES",
    "TOO_EARLY",
    "Action",
    "ChainState",
    "Commit",
    "Decision",
    "Domain",
    "MessageKind",
    "Registration",
    "Report",
    "SignedMessage",
    "address_of",
    "is_peer_id",
    "kind_of_path",
    "peer_id",
    "proves",
    "public_key",
    "recover",
    "sign",
    "sign_commit",
    "sign_registration",
    "sign_report",
]
