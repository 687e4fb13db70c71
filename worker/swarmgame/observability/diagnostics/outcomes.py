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
_FLOOD = "Peers that nobody vouches for send more than a peer of this game needs to"
_TRUST = (
    "Name the peers that you trust, whose share is their own: communication.admission Allowlist or Registered, or "
    "--anchor ID"
)

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
        "`stage_inputs` depends in stage 0 on what other peers cannot know (`self`, a clock, a file of its own), or "
        "the peers have different prompt templates or members",
        f"Derive prompts from question and state alone. {_SAME_GAME}",
        warned_after=3,
    ),
    "prompt-failed": Outcome(
        "Groups of a peer as which the game's `stage_inputs` failed: their prompts could not be checked",
        "`stage_inputs` takes for granted that its peer is a member, has a role, or sent something in each stage "
        "before, which a peer that has just joined or sends nothing does not",
        "Let `stage_inputs` make no prompt there; the log names the peer and the line",
        warned_after=3,
    ),
    "other-role": Outcome(
        "Groups of a peer with another role than this peer assigns to it, whose prompt is not that of the assigned one",
        "The peers do not see the same members yet, since one joined or left, or an author takes a turn of another "
        "role",
        "Nothing has to be done after a change of members; if it goes on, find the peer in the report, and admit "
        "registered peers only",
        warned_after=10,
    ),
    "illegal-move": Outcome(
        "Groups with a move that the game's `check_move` refuses: nothing reads them",
        "An author has another version of the game, or is hostile: a policy of this game never makes such a move",
        f"{_SAME_GAME}; the log names the peer and the rule",
        warned_after=3,
    ),
    "other-position": Outcome(
        "Groups of a later stage whose author had collected other contributions than this peer, with a move that "
        "`check_move` refuses after those that this peer has: nothing reads them",
        "Contributions reach the peers at different times, so that a move that is legal at its author is not here",
        "Wait for all contributions (progression.quorum 100%, or a longer stageDeadlineSeconds)",
        warned_after=10,
    ),
    "past-stage": Outcome(
        "Groups of a later stage of an earlier round. What their author saw is gone, so they cannot be checked, and "
        "nothing reads them",
    ),
    "role-without-taker": Outcome(
        "Roles of the game that no live member has, counted in each round",
        "There are fewer live members than roles, or earlier roles take them all",
        "Start more peers (spec.peers.replicas), or give the roles before it smaller counts or shares in "
        "spec.game.roles",
        warned_after=3,
    ),
    "text-mismatch": Outcome(
        "Groups whose text is not what their token ids decode to",
        "The peers have different tokenizers under one name, or an author sends a text that it did not sample",
        "Use the same model revision everywhere",
        warned_after=3,
    ),
    "unknown-ids": Outcome(
        "Groups with token ids outside the vocabulary",
        "The author has another model under the same tokenizer hash, or is hostile",
        "Use the same model revision everywhere",
        warned_after=3,
    ),
    "transcript-mismatch": Outcome(
        "Groups with a transcript that this peer's own environment does not play: other observations, other ids, "
        "another end, or turns in a game without an environment",
        "The peers have different environments (another version or configuration, or one that is not deterministic) or "
        "chat templates, or the author is hostile",
        "Give all peers the same environment and model; `swarmgame env check` plays twice and names what differs",
        warned_after=3,
    ),
    "transcript-not-played": Outcome(
        "Groups whose transcripts this peer could not play again: their author's time was used up, or a play took too "
        "long, here or at the author",
        "The environment is slow for this machine or the author's, or an author sends turns that take long",
        "Make the environment's step() faster, lower maxTurns, or share fewer questions",
        warned_after=10,
    ),
    "copied": Outcome(
        "Groups whose rollouts were seen before in another contribution, which counts alone",
        "An author signs what others sampled",
        "Nothing has to be done; find the author in the report, and admit registered peers only if it goes on",
        warned_after=10,
    ),
    "too-many-rollouts": Outcome(
        "Contributions with a group of more rollouts than the game's `generations`",
        "The author has another number of generations, or is hostile",
        _SAME_GAME,
        warned_after=3,
    ),
    "implausible": Outcome(
        "Rollouts that this peer's own policy would hardly ever sample: some tokens, or all, are far less likely than "
        "in its own. They get no weight",
        "The author's policy is very different (another model, or a collapsed one), or it wrote what it did not sample",
        "Use the same model everywhere; compare the author's rollouts with `swarmgame rollouts`",
        warned_after=10,
    ),
    "improbable": Outcome(
        "Rollouts whose claimed log-probabilities are too low to be true. They get no weight",
        "The author samples with other settings than it claims, or claims little to gain weight",
        "Use one version everywhere; find the author in the report",
        warned_after=10,
    ),
    "doubtful-author": Outcome(
        "Peers whose groups are not used for ten rounds, counted in each: over many tokens the log-probabilities that "
        "they claim do not fit their rollouts",
        "A peer's policy has little in common with this peer's, or it claims what is not true",
        "Use the same model everywhere; find the peer by its id in the log, and admit registered peers only",
        warned_after=1,
    ),
    "sharing-paused": Outcome(
        "Groups that could have been trained on, while sharing is paused: the held-out score fell twice in a row by "
        "more than chance, and the rewards of other peers' rollouts did not",
        "Other peers' rollouts earn rewards for what held-out questions do not ask for, or the policy's own training "
        "makes it worse",
        "Look at the authors' rollouts with `swarmgame rollouts`, at rewards for answers that should earn none, and at "
        "learningRate. Sharing resumes when the score is back, or after four evaluations",
        warned_after=1,
    ),
    "stale": Outcome(
        "Announcements that are too old: of a round more than `maxStalenessRounds` ago, or expired",
        "A peer is many rounds behind, or its clock is wrong",
        "Give the slow peer less work or a faster machine; synchronize the clocks",
        warned_after=10,
    ),
    "expired": Outcome(
        "Heartbeats of peers that are no members and that had expired when they came: of a peer that has gone, or by a "
        "wrong clock",
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
        "A peer is not registered on the game's chain, or is not in communication.allowedPeers",
        "Register it, add its id to the list, or set communication.admission to Open",
        warned_after=10,
    ),
    "probation": Outcome(
        "Contributions of peers that do not count yet: they are used, and no stage waits for them",
    ),
    "missed": Outcome(
        "Peers that stopped counting: a stage waited for them until its deadline, or their contribution came too late "
        "to be used",
        "Peers are slower than the others, were stopped, or hold a stage up on purpose",
        "Give a slow peer less work or a faster machine; a peer that is held up by strangers names those it trusts: "
        "communication.admission Allowlist or Registered, or --anchor ID",
    ),
    "too-far-ahead": Outcome(
        "Heartbeats and announcements of rounds that the game does not have",
        "A peer plays a longer version of the game, or is hostile",
        "Give all peers the same game.maxRounds",
        warned_after=3,
    ),
    "not-its-own": Outcome(
        "Greetings with the heartbeat of another peer than their sender", _HOSTILE, _HOSTILE_CURE, warned_after=3
    ),
    "second-hand": Outcome(
        "Announcements that did not come from their author, in a swarm where every peer sends its own, or of a peer "
        "that does not count, from another that does not count either",
        _HOSTILE,
        _HOSTILE_CURE,
        warned_after=10,
    ),
    "too-slow": Outcome(
        "Bodies that came slowly, and were given up because many others did too",
        "Peers have slow connections, or are slow on purpose",
        "Nothing needs to be done: peers that do not deliver are not waited for",
        warned_after=20,
    ),
    "too-large": Outcome(
        "Messages or bodies above the limits of the wire format",
        "Contributions are larger than other peers accept",
        "Send less in a round: fewer questions, generations or tokens",
        warned_after=3,
    ),
    "too-many": Outcome(
        "Announcements of peers that do not count, beyond the places that all of them have: 256 for one, 1,024 for one "
        "address, 4,096 in all",
        _FLOOD,
        _TRUST,
        warned_after=3,
    ),
    "no-such-stage": Outcome(
        "Announcements of stages that the game does not have", _HOSTILE, _HOSTILE_CURE, warned_after=3
    ),
    "no-room": Outcome(
        "Indexes and bodies beyond the memory that is kept for their author: 16 MiB for a peer that does not count and "
        "64 MiB for all of them, or more where this peer's own contributions are large",
        _FLOOD,
        _TRUST,
        warned_after=3,
    ),
    "beyond-budget": Outcome(
        "Contributions that were left out because to decode, verify and score them would take more than their authors' "
        "share of a round: together a quarter of the time of this peer's own work, or four contributions as large as "
        "its own",
        _FLOOD,
        _TRUST,
        warned_after=3,
    ),
    "too-many-tokens": Outcome(
        "Bodies with a rollout longer than the trainer's `maxNewTokens`",
        "Their author has another trainer, or is hostile",
        _SAME_GAME,
        warned_after=3,
    ),
    "too-many-calls": Outcome(
        "Calls that were refused unread, because their sender, or all peers that do not count together, call more "
        "often than a game needs",
        _FLOOD,
        _TRUST,
        warned_after=3,
    ),
    "too-many-streams": Outcome(
        "Requests for bodies that were closed: more than 8 at once of one peer, or 64 of all that do not count",
        _FLOOD,
        _TRUST,
        warned_after=3,
    ),
    "no-stream": Outcome(
        "Bodies of peers that do not count that were not fetched, since 256 of theirs wait for a stream already",
        _FLOOD,
        _TRUST,
        warned_after=3,
    ),
    "directory-refused": Outcome(
        "Values for the directory of members that are no heartbeat of the peer in whose place they are, are too large, "
        "or too many",
        _FLOOD,
        _TRUST,
        warned_after=10,
    ),
    "malformed": Outcome("Messages that cannot be parsed", _HOSTILE, _HOSTILE_CURE, warned_after=3),
    "bad-signature": Outcome("Messages whose signature is wrong", _HOSTILE, _HOSTILE_CURE, warned_after=3),
    "bad-hash": Outcome("Bodies that do not have their announced hash", _HOSTILE, _HOSTILE_CURE, warned_after=3),
    "other-game": Outcome(
        "Heartbeats and announcements of peers whose rounds, data, code or rewards differ from this peer's: they are "
        "no members",
        "A peer joined with another manifest, other rows, other modules or other versions of the data's libraries",
        f"{_SAME_GAME}; the log names what differs, and `swarmgame env check` shows what it is made of",
        warned_after=1,
    ),
    "same-key": Outcome(
        "Other processes that run with this peer's key",
        "A folder or a key file was copied to a second machine, or the same peer was started twice",
        "Stop the process that came later, or give it a key of its own (--identity FILE)",
        warned_after=1,
    ),
    "equivocation": Outcome(
        "Second, different announcements of one peer for one stage: neither is used. The first costs the peer that "
        "round, a further one within a hundred rounds bans it for ten rounds, then for twice as many each time",
        "The peer was killed and played rounds again from its checkpoint, two processes run with the same key, or it "
        "is hostile",
        "Give each peer a key file of its own",
        warned_after=3,
    ),
    "banned": Outcome("Announcements of banned peers: see `equivocation`"),
}
