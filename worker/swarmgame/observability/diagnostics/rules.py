"""Rules: from the rounds of one peer to warnings.

Each rule is a pure function of the last rounds and of the game; it returns what it found, with figures, or None. Its
cause and cure are data beside it, for the terminal, the report and `docs/reference/warnings.md`. No rule keeps a
state: `log` shows each warning once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from swarmgame.game.protocol import ClosedBy
from swarmgame.observability.diagnostics.outcomes import OUTCOMES
from swarmgame.observability.diagnostics.records import GameFacts, RoundRecord

WINDOW = 20
"""Rounds that a rule can look back."""
EARLY, USUAL = 3, 10
"""Rounds after which a game that has not begun to learn is suspected, and rounds for what may be chance."""
WRONG_CLOCK_SECONDS = 5.0
"""Synchronized clocks differ by milliseconds, and a busy peer signs a second too early."""
Records = Sequence[RoundRecord]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One warning.

    Args:
        code: name of the rule.
        subject: tells warnings of one rule apart: an outcome, a line of code.
        round: in which it was found.
        text: what was found, with figures.
        cause, cure: likely cause, and what to do; sentences without a full stop.
        detail: more lines, such as a traceback.
        count: how often it happened (calls of a function), or in how many rounds it was found.
    """

    code: str
    subject: str
    round: int
    text: str
    cause: str = ""
    cure: str = ""
    detail: str = ""
    count: int = 1

    @property
    def key(self) -> tuple[str, str]:
        return self.code, self.subject

    def __str__(self) -> str:
        parts = [self.text, f"Likely cause: {_lowered(self.cause)}" if self.cause else "", self.cure]
        return ". ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Args:
        code: its name.
        when: when it warns, for the reference.
        cause, cure: see `Diagnostic`.
        find: returns what it found in the last `WINDOW` rounds, the newest last.
    """

    code: str
    when: str
    cause: str
    cure: str
    find: Callable[[Records, GameFacts], str | None]


def no_spread(records: Records, facts: GameFacts) -> str | None:
    """Find rounds in which rewards cannot tell a better rollout from a worse one."""
    recent = _early_or_usual(records)
    if not recent or not all(record.rollouts > record.unscored for record in recent):
        return None
    low, high = min(record.low for record in recent), max(record.high for record in recent)
    if low == high:
        if low >= facts.full_reward:
            return f"nothing is left to learn: {_rounds(recent)} every rollout had full reward ({_figure(low)})"
        return f"nothing can be learned: {_rounds(recent)} every rollout of every group scored {_figure(low)}"
    if any(record.spread for record in recent) or recent[-1].policy_version != recent[0].policy_version:
        return None
    return f"nothing can be learned: {_rounds(recent)} all rollouts of each group had equal rewards"


def no_steps(records: Records, facts: GameFacts) -> str | None:
    """Find rounds without an update of the policy, although rewards differed."""
    recent = _early_or_usual(records)
    if not facts.trains or not recent or recent[-1].policy_version != recent[0].policy_version:
        return None
    if not all(record.spread for record in recent):
        return None
    return f"the policy was not updated {_rounds(recent)}, although rewards differed within groups"


def steps_not_finite(records: Records, facts: GameFacts) -> str | None:
    """Find optimizer steps that were left out again and again."""
    recent = records[-USUAL:]
    bad = [record for record in recent if record.skipped_steps]
    if len(bad) < EARLY:
        return None
    return f"gradients were not finite in {len(bad)} of the last {len(recent)} rounds, so their steps were left out"


def all_truncated(records: Records, facts: GameFacts) -> str | None:
    """Find rounds in which every completion was cut."""
    recent = _recent(records, EARLY)
    if not recent or not all(0 < record.rollouts == record.truncated for record in recent):
        return None
    return f"every completion was cut at the limit of tokens {_rounds(recent)}"


def unscored(records: Records, facts: GameFacts) -> str | None:
    """Find rollouts without a reward, round after round."""
    recent = _recent(records, EARLY)
    if not recent or not all(record.unscored for record in recent):
        return None
    missing, total = sum(record.unscored for record in recent), sum(record.rollouts for record in recent)
    return f"{missing} of {total} rollouts had no reward {_rounds(recent)}; they are not trained on"


def empty_evaluation(records: Records, facts: GameFacts) -> str | None:
    """Find an evaluation that evaluated nothing."""
    last = records[-1]
    due = facts.evaluate_every and (last.round + 1) % facts.evaluate_every == 0
    if due and last.evaluated is None:
        return f"the evaluation of round {last.round} had no questions"
    if last.evaluated is not None and math.isnan(last.evaluated):
        return f"the evaluation of round {last.round} scored no rollout"
    return None


def isolated(records: Records, facts: GameFacts) -> str | None:
    """Find a peer without a swarm."""
    recent = _recent(records, EARLY)
    if facts.single_peer or not recent or not all(record.closed_by is ClosedBy.ISOLATED for record in recent):
        return None
    return f"this peer is alone: no other member was live {_rounds(recent)}"


def shares_nothing(records: Records, facts: GameFacts) -> str | None:
    """Find a peer that trains on no other peer's rollouts, although the game shares them."""
    recent = _recent(records, USUAL)
    if not facts.external_groups or facts.single_peer or not recent:
        return None
    if any(record.external or record.members < 2 for record in recent):
        return None
    if not any(record.spread for record in recent) and recent[0].policy_version == recent[-1].policy_version:
        return None
    dropped = Counter[str]()
    for record in recent:
        dropped.update({name: count for name, count in record.outcomes.items() if OUTCOMES.get(name, _NONE).cause})
    reasons = ", ".join(f"{name} {count}" for name, count in dropped.most_common(3))
    return f"no group of another peer was trained on {_rounds(recent)}" + (f" ({reasons})" if reasons else "")


def skipped_rounds(records: Records, facts: GameFacts) -> str | None:
    """Find a peer that again and again skips rounds to follow the others."""
    gaps = [after.round - before.round - 1 for before, after in pairwise(records)]
    skips = [gap for gap in gaps if gap > 0]
    if len(skips) < 2:
        return None
    return f"this peer skipped {sum(skips)} of the last {records[-1].round - records[0].round + 1} rounds"


def missing_members(records: Records, facts: GameFacts) -> str | None:
    """Find members whose contributions come too late, round after round."""
    recent = _recent(records, USUAL)
    late = Counter(peer for record in recent for peer in record.missing)
    rounds = sum(bool(record.missing) for record in recent)
    if not recent or 2 * rounds < len(recent):
        return None
    names = ", ".join(f"…{peer[-6:]} {count} times" for peer, count in late.most_common(3))
    return f"in {rounds} of the last {len(recent)} rounds a stage closed without some members ({names})"


def dropped(records: Records, facts: GameFacts, *, outcome: str) -> str | None:
    """Find groups or messages that are refused for one reason, round after round."""
    known = OUTCOMES[outcome]
    recent = _recent(records, known.warned_after)
    if not recent or not all(record.outcomes.get(outcome) for record in recent):
        return None
    if known.may_be_normal and any(record.external for record in recent):
        return None
    total = sum(record.outcomes[outcome] for record in recent)
    return f"{total} messages or groups of other peers were not used {_rounds(recent)}: {outcome}"


def wrong_clock(records: Records, facts: GameFacts) -> str | None:
    """Find a clock that is far from those of the members that count."""
    error = records[-1].clock_error
    if error is None or abs(error.seconds) < WRONG_CLOCK_SECONDS:
        return None
    where = f"{abs(error.seconds):.0f} s {'ahead of' if error.seconds > 0 else 'behind'}"
    if error.peers == 1:
        return f"this machine's clock is {where} that of the only member whose clock is known: one of both is wrong"
    return f"this machine's clock is {where} those of the members that count ({error.peers} are known)"


def nothing_learned(rounds: int, first_version: int, last_version: int, facts: GameFacts) -> str | None:
    """Find, at the end of a game, that the policy is the one with which it began.

    Args:
        rounds: that were played.
        first_version, last_version: number of the policy's updates before and after.
    """
    if not facts.trains or not rounds or last_version != first_version:
        return None
    played = "the round" if rounds == 1 else f"{rounds} rounds"
    return f"nothing was learned: no optimizer step in {played}, so the policy is the one with which the game began"


SKIPPED_ROUNDS, MISSING_MEMBERS, WRONG_CLOCK = "skipped-rounds", "missing-members", "wrong-clock"
RULES = (
    Rule(
        "no-spread",
        "All rewards are equal in the first 3 rounds, or in 10 rounds in a row later",
        "The policy never gives an answer that is rewarded, it always does, or the reward does not depend on answers",
        "Begin with easier questions or a warm start (Demonstrations), sample more (generations, temperature), or give "
        "part of the reward for part of an answer",
        no_spread,
    ),
    Rule(
        "no-steps",
        "The policy is not updated in the first 3 rounds, or in 10 rounds in a row, although rewards differ",
        "Every step was left out, because its gradient was not finite, or the trainer used none of the groups",
        "Lower learningRate; look at steps_skipped, groups_unscored and groups_trained in metrics.jsonl",
        no_steps,
    ),
    Rule(
        "steps-not-finite",
        "Gradients are not finite in at least 3 of 10 rounds",
        "The learning rate is too high, rewards are very large, or the weights' type is too narrow",
        "Lower learningRate or the rewards' size, or train in float32",
        steps_not_finite,
    ),
    Rule(
        "all-truncated",
        "Every completion of 3 rounds in a row is cut at its limit of tokens",
        "maxNewTokens is too low for the answers, or the model does not end them",
        "Raise maxNewTokens, ask for short answers, or use a model and chat template that end an answer",
        all_truncated,
    ),
    Rule(
        "unscored",
        "Rollouts have no reward (NaN or none) in 3 rounds in a row",
        "RewardManager.rewards returns NaN or leaves out groups; or three answers of a round broke a limit of the "
        "sandbox, and those after them were not run",
        "Return a finite number for each rollout of every group of state.groups(); where counters in metrics.jsonl has "
        "sandbox_not_run, make the function faster or raise deadlineSeconds",
        unscored,
    ),
    Rule(
        "empty-evaluation",
        "An evaluation has no questions, or scores none",
        "DataManager.evaluation_data returns nothing, or stage_inputs makes no prompts for its questions",
        "Implement evaluation_data, make prompts for held-out questions in every stage, or remove spec.game.evaluation",
        empty_evaluation,
    ),
    Rule(
        "isolated",
        "A peer of a game with several peers has no other member for 3 rounds",
        "The others have ended, cannot be reached, or play another game (name, seed and data must be equal)",
        "Look whether they run and at which address; check --initial-peer, ports and firewalls, and compare manifests",
        isolated,
    ),
    Rule(
        "shares-nothing",
        "Members are live, rewards differ or the policy is updated, and still no group of theirs is trained on for 10 "
        "rounds",
        "All their groups are refused (see the outcomes), none has different rewards, or none arrives in time",
        "See the warnings about outcomes; raise progression.quorum so that stages wait for all members; where a group "
        "has one rollout, set sharing.strategy to uniform",
        shares_nothing,
    ),
    Rule(
        SKIPPED_ROUNDS,
        "A peer skips rounds at least twice within 20",
        "It is slower than the others, and stages close without it",
        "Set progression.quorum to 100%, give it less work or a faster machine, or run fewer peers on one machine",
        skipped_rounds,
    ),
    Rule(
        MISSING_MEMBERS,
        "In at least half of 10 rounds a stage closes before some members have published",
        "They are slower than the others, and the quorum or the deadline closes the stage without them",
        "Set progression.quorum to 100% or raise stageDeadlineSeconds, or give them less work",
        missing_members,
    ),
    Rule(
        WRONG_CLOCK,
        "This machine's clock is 5 s or more from those of more than half of the members that count",
        "The machine does not synchronize its clock",
        "Synchronize it (timedatectl set-ntp true; a container has the clock of its node). Rounds go on meanwhile: "
        "messages are judged by their sender's clock. A peer that joins finds this one later, and times in files are "
        "wrong",
        wrong_clock,
    ),
)
DROPPED = "dropped"
SCORING_FAILED = "scoring-failed"
NOTHING_LEARNED = Rule(
    "nothing-learned",
    "At the end: no optimizer step in any round, although the trainer is meant to update",
    "No group had different rewards, or every step was left out",
    "See the other warnings; the run ends with 0, since every round was played",
    lambda records, facts: None,
)
_NONE = OUTCOMES["accepted"]


def find_all(records: Records, facts: GameFacts) -> list[Diagnostic]:
    """Return what all rules find in the last rounds of a peer, the newest last."""
    records = records[-WINDOW:]
    number = records[-1].round
    found = [
        Diagnostic(rule.code, "", number, text, rule.cause, rule.cure)
        for rule in RULES
        if (text := rule.find(records, facts)) is not None
    ]
    for name, outcome in OUTCOMES.items():
        if outcome.warned_after and (text := dropped(records, facts, outcome=name)) is not None:
            found.append(Diagnostic(DROPPED, name, number, text, outcome.cause, outcome.cure))
    return found


def _recent(records: Records, count: int) -> Records:
    """Return the last rounds; none where there are fewer."""
    return records[-count:] if len(records) >= count else ()


def _early_or_usual(records: Records) -> Records:
    """Return the last rounds, fewer at the start of a game; none before the third."""
    return records[-USUAL:] if len(records) >= EARLY else ()


def _rounds(records: Records) -> str:
    first, last = records[0].round, records[-1].round
    return f"in round {first}" if first == last else f"in rounds {first} to {last}"


def _figure(value: float) -> str:
    return f"{value:g}"


def _lowered(sentence: str) -> str:
    """Return a sentence with a small first letter, unless a name begins it."""
    return sentence[0].lower() + sentence[1:] if sentence[1:2].islower() and " " in sentence[:12] else sentence
