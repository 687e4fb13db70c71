"""Outcomes: what became of each message and group of other peers, with cause and cure of those that were not used.

The names are the keys of `RoundReport.outcomes`. The rules warn by this table, and `docs/reference/warnings.md` shows
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """One outcome.

    Args:
        meaning: what it counts.
        cause: the likely cause of many of them, as a sentence without a full stop; empty where they are normal.
        cure: what to do, likewise.
        warned_after: rounds in a row with at least one that cause a warning; 0: none.
        may_be_normal: warned of only where in these rounds no group of another peer was trained on.
    """

    meaning: str
    cause: str = ""
    cure: str = ""
    warned_after: int = 0
    may_be_normal: bool = False


_OTHER_GAME = (
    "The peers play different games: another version of the data's class, another configuration or another version of "
    "its library"
)
_SAME_GAME = "Give all peers the same manifest, modules and package versions"
_HOSTILE = "The author has another version of swarmgame, its bytes are changed on the way, or it is hostile"
_HOSTILE_CURE = "Use one version everywhere; find the peer by its id in the log, and admit registered peers only"

OUTCOMES: Mapping[str, Outcome] = {
    "accepted": Outcome("Announcements that came in time"),
    "late": Outcome("Announcements that came after their stage had closed; usable for `maxStalenessRounds` rounds"),
    "duplicate": Outcome("Announcements that were known already: several peers pass on the same one"),
    "words-only": Outcome(
        "Groups of a later stage whose prompt this peer would not have made, since it depends on what their author had "
        "collected. The next stage reads their text; they are not trained on",
        "Prompts of every stage depend on what their author had collected, such as other peers' answers",
        "Expected in games of several stages: groups of the first stage are trained on. To share later stages too, "
        "make their prompts depend only on what every peer has (all contributions: progression.quorum 100%)",
        warned_after=5,
        may_be_normal=True,
    ),
    "unresolvable": Outcome(
        "Groups whose question this peer cannot make from its reference",
        _OTHER_GAME,
        f"{_SAME_GAME}; `swarmgame validate` tells when `resolve` does not know the questions of its own `round_data`",
        warned_after=3,
    ),
    "prompt-mismatch": Outcome(
        "Groups whose prompt differs from the one that this peer makes for the same question",
        "`stage_inputs` depends in stage 0 on who calls it (`state.round.peer`, role, members), or the peers have "
        "different prompt templates",
        f"Derive the prompt of stage 0 from the question alone. {_SAME_GAME}",
        warned_after=3,
    ),
    "text-mismatch": Outcome(
        "Groups whose text is not what their token ids decode to",
        "The peers have different tokenizers under one name, or an author sends a text that it did not sample",
        "Use the same model revision everywhere",
        warned_after=3,
    ),
    "stale": Outcome(
        "Announcements that are too old: of a round more than `maxStalenessRounds` ago, or expired",
        "A peer is many rounds behind, or its clock is wrong",
        "Give the slow peer less work or a faster machine; synchronize the clocks",
        warned_after=10,
    ),
    "ahead": Outcome(
        "Announcements of rounds far ahead of this peer's",
        "This peer is many rounds behind the others",
        "Give it less work or a faster machine: fewer questions or generations, or more threads",
        warned_after=10,
    ),
    "unreachable": Outcome(
        "Requests to a peer that did not answer",
        "A firewall or a NAT lies between, the peer announces an address at which it cannot be reached, or it is gone",
        "Open the peer's port, and give it a reachable address with --announce",
        warned_after=10,
    ),
    "not-there": Outcome(
        "Bodies that their author no longer had",
        "The author was restarted, or serves its contributions for fewer rounds than this peer is behind",
        "Give the slow peer less work or a faster machine",
        warned_after=10,
    ),
    "not-admitted": Outcome(
        "Messages of peers that this game does not admit",
        "A peer is not registered on the game's chain",
        "Register it, or set communication.admission to Open",
        warned_after=10,
    ),
    "too-large": Outcome(
        "Messages or bodies above the limits of the wire format",
        "Contributions are larger than other peers accept",
        "Send less in a round: fewer questions, generations or tokens",
        warned_after=3,
    ),
    "too-many": Outcome("Announcements above the limit per peer", _HOSTILE, _HOSTILE_CURE, warned_after=3),
    "malformed": Outcome("Messages that cannot be parsed", _HOSTILE, _HOSTILE_CURE, warned_after=3),
    "bad-signature": Outcome("Messages whose signature is wrong", _HOSTILE, _HOSTILE_CURE, warned_after=3),
    "bad-hash": Outcome("Bodies that do not have their announced hash", _HOSTILE, _HOSTILE_CURE, warned_after=3),
    "equivocation": Outcome(
        "Second, different announcements of one peer for one stage",
        "Two processes run with the same key, or the peer is hostile",
        "Give each peer a key file of its own",
        warned_after=3,
    ),
}
