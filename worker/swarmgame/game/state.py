"""GameState: everything said so far in a round, as a tree round → stage → peer → item → rollouts.

Nothing here knows of models, sockets or files. Invariant: a contribution, once added, is never changed; whoever needs
another state makes a new one, so the prompts that a policy is trained on are, by construction, those that it generated
on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

PeerId = str
"""A libp2p peer id (base58 of the identity multihash of a secp256k1 public key), or any unique name in tests."""


class FinishReason(StrEnum):
    """Why a rollout ended: the policy said so (EOS is its last token), or the budget ran out."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class QuestionRef:
    """Where a question comes from: enough for any peer to make the same question and answer again.

    Args:
        environment: name of the environment or dataset, as the DataManager knows it.
        config: short digest of its configuration; a peer with another configuration cannot regenerate the question.
        seed: seed of the stream, in [0, 2**62).
        index: position in the stream, non-negative.
    """

    environment: str
    config: str
    seed: int
    index: int

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits that name the question, the same on every peer."""
        text = json.dumps([self.environment, self.config, self.seed, self.index])
        return hashlib.blake2b(text.encode(), digest_size=8, person=b"swarmgame-item").hexdigest()


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping if isinstance(mapping, MappingProxyType) else MappingProxyType(dict(mapping))


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a round. Only its reference ever leaves the peer; the rest is regenerated from it.

    Args:
        reference: where it comes from.
        text: the question itself; empty for a game without words.
        answer: the right answer; empty where the reward needs none.
        metadata: whatever rewards and later stages need; local.
        payload: an image, a board, …; local, opaque to the core.
    """

    reference: QuestionRef
    text: str = ""
    answer: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)
    payload: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", _frozen(self.metadata))

    @property
    def id(self) -> str:
        return self.reference.id


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as chat templates want it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a stage asks about one item.

    Args:
        item: id of the item.
        messages: the words; empty for a game without words.
        token_ids: the ids that the policy saw, filled in by the Trainer; empty for a policy that does not read tokens,
            and in the groups of others, whose prompts are our own regenerated ones: whoever trains on those tokenises
            the messages itself.
        payload: what a policy without words sees (an image tensor, a board); local, never sent.
    """

    question_id: str
    messages: tuple[Message, ...] = ()
    token_ids: tuple[int, ...] = ()
    payload: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def ask(cls, question: Question, text: str | None = None, *, system: str = "") -> Prompt:
        """A prompt of one user message: the given text, or else the item's question."""
        user = Message("user", question.text if text is None else text)
        messages = (Message("system", system), user) if system else (user,)
        return cls(question_id=question.id, messages=messages, payload=question.payload)

    @property
    def text(self) -> str:
        """The messages' contents, joined by blank lines: what a policy without a chat template reads."""
        return "\n\n".join(message.content for message in self.messages)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion: exactly what was sampled.

    Args:
        text: for people, rewards and later stages, without special tokens; never re-tokenised for training when
            tokenizers agree.
        token_ids: the sampled ids, with EOS when there was one. For a policy over discrete actions: the actions.
        logprobs: natural-log probability of each id under the sampling policy at its temperature, before top-k or
            top-p; one an id. These and the ids are tuples where they were sampled, a `Column` where they came from
            others.
        finish_reason: STOP when the policy ended it.
    """

    text: str = ""
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    finish_reason: FinishReason = FinishReason.STOP

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.token_ids)} token ids but {len(self.logprobs)} log-probabilities")


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one prompt (GRPO's G of them)."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    @property
    def question_id(self) -> str:
        return self.prompt.question_id


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one peer said in one stage.

    Args:
        peer: who.
        round, stage: when, both from 0.
        groups: one a prompt; no item twice.
        references: of every item that the groups speak of, so that a receiver can regenerate them.
        tokenizer: hash of the tokenizer (or action space) that the ids belong to.
        policy_version: how many updates the sampling policy had seen.
    """

    peer: PeerId
    round: int
    stage: int
    groups: tuple[Group, ...]
    references: Mapping[str, QuestionRef]
    tokenizer: str = ""
    policy_version: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "references", _frozen(self.references))
        question_ids = [group.question_id for group in self.groups]
        if len(set(question_ids)) != len(question_ids):
            raise ValueError(f"an item appears twice in the contribution of {self.peer}")
        unknown = [question_id for question_id in question_ids if question_id not in self.references]
        if unknown:
            raise ValueError(f"no reference for items {unknown}")

    def group(self, question_id: str) -> Group | None:
        return next((group for group in self.groups if group.question_id == question_id), None)


class GroupKey(NamedTuple):
    """Address of a group in the tree."""

    round: int
    stage: int
    peer: PeerId
    question_id: str


Rewards = Mapping[GroupKey, Sequence[float]]
"""One float per rollout of every scored group; NaN marks a rollout that could not be scored."""


@dataclass(frozen=True, slots=True)
class Round:
    """One pass of the progression, as one peer sees it.

    Args:
        number: from 0.
        seed: the same for every peer of the swarm.
        peer_seed: this peer's own.
        stages: how many, at least 1.
        peer: who we are.
        members: sorted ids of the live members, ourselves included.
        role: what the RoleManager gave us; empty where the game has no roles.
        evaluation: a solo pass over held-out questions: nothing is sent and nothing is learnt.
        stage: the stage under way, from 0; part of every seed that sampling uses.
    """

    number: int
    seed: int
    peer_seed: int
    stages: int
    peer: PeerId
    members: tuple[PeerId, ...] = ()
    role: str = ""
    evaluation: bool = False
    stage: int = 0


@dataclass(frozen=True)
class GameState:
    """Everything said so far in one round.

    Args:
        round: which one, and who is looking.
        items: by id: our own and those of others that we could regenerate.
        question_ids: ids of those that this peer asks about, in order: what `round_data` gave.
        stages: for each stage begun, the contributions by peer.
        late: contributions of earlier rounds that arrived in time to be of use.
        external: groups of others that the sharing policy chose for training, in order.
    """

    round: Round
    questions: Mapping[str, Question] = field(default_factory=dict)
    stages: tuple[Mapping[PeerId, Contribution], ...] = ()
    late: tuple[Contribution, ...] = ()
    external: tuple[GroupKey, ...] = ()
    question_ids: tuple[str, ...] = ()

    @classmethod
    def begin(cls, round: Round, questions: Iterable[Question] = ()) -> GameState:
        by_id = {question.id: question for question in questions}
        return cls(round=round, questions=_frozen(by_id), question_ids=tuple(by_id))

    # ── growing
    def with_questions(self, questions: Iterable[Question]) -> GameState:
        """Adds items; one already known keeps its first form."""
        return replace(
            self, questions=_frozen({question.id: question for question in questions} | dict(self.questions))
        )

    def with_contribution(self, contribution: Contribution) -> GameState:
        """Adds what a peer said. A contribution of this round goes to its stage, an earlier one among the late.

        Raises:
            ValueError: the peer has spoken in that stage already, or the stage or round has not come yet.
        """
        if contribution.round < self.round.number:
            if any(
                (c.round, c.stage, c.peer) == (contribution.round, contribution.stage, contribution.peer)
                for c in self.late
            ):
                raise ValueError(
                    f"{contribution.peer} has already spoken in round {contribution.round}, stage {contribution.stage}"
                )
            return replace(self, late=(*self.late, contribution))
        if contribution.round > self.round.number:
            raise ValueError(f"round {contribution.round} has not come yet; this is round {self.round.number}")
        stage = contribution.stage
        if not 0 <= stage <= len(self.stages):
            raise ValueError(f"stage {stage} has not come yet; {len(self.stages)} stages have begun")
        stages = [*self.stages, MappingProxyType({})] if stage == len(self.stages) else list(self.stages)
        if contribution.peer in stages[stage]:
            raise ValueError(f"{contribution.peer} has already spoken in stage {stage}")
        stages[stage] = _frozen({**stages[stage], contribution.peer: contribution})
        return replace(self, stages=tuple(stages))

    def with_external(self, keys: Iterable[GroupKey]) -> GameState:
        return replace(self, external=tuple(keys))

    # ── reading
    @property
    def peer(self) -> PeerId:
        return self.round.peer

    def contributions(self, stage: int) -> tuple[Contribution, ...]:
        """What was said in a stage, sorted by peer."""
        if stage >= len(self.stages):
            return ()
        return tuple(self.stages[stage][peer] for peer in sorted(self.stages[stage]))

    def own(self, stage: int) -> Contribution | None:
        return self.stages[stage].get(self.peer) if stage < len(self.stages) else None

    def groups_for(self, stage: int, question_id: str) -> tuple[tuple[PeerId, Group], ...]:
        """All groups about one item in a stage, sorted by peer: the swarm's answers to one question."""
        pairs = ((c.peer, c.group(question_id)) for c in self.contributions(stage))
        return tuple((peer, group) for peer, group in pairs if group is not None)

    def groups(self) -> Iterator[tuple[GroupKey, Group]]:
        """Every group of the state, the late ones last, in an order that does not depend on arrival."""
        current = [c for stage in range(len(self.stages)) for c in self.contributions(stage)]
        late = sorted(self.late, key=lambda c: (c.round, c.stage, c.peer))
        for contribution in (*current, *late):
            for group in contribution.groups:
                yield GroupKey(contribution.round, contribution.stage, contribution.peer, group.question_id), group

    def own_groups(self) -> tuple[tuple[GroupKey, Group], ...]:
        """Our own groups of this round, by stage."""
        return tuple((k, g) for k, g in self.groups() if k.peer == self.peer and k.round == self.round.number)

    def remote_groups(self) -> tuple[tuple[GroupKey, Group], ...]:
        """Groups of others, the late ones included."""
        return tuple((k, g) for k, g in self.groups() if k.peer != self.peer)

    def contribution_of(self, key: GroupKey) -> Contribution:
        """The contribution that a group stands in.

        Raises:
            KeyError: there is none.
        """
        if key.round == self.round.number and key.stage < len(self.stages) and key.peer in self.stages[key.stage]:
            return self.stages[key.stage][key.peer]
        for contribution in self.late:
            if (contribution.round, contribution.stage, contribution.peer) == key[:3]:
                return contribution
        raise KeyError(key)

    def group_of(self, key: GroupKey) -> Group:
        group = self.contribution_of(key).group(key.question_id)
        if group is None:
            raise KeyError(key)
        return group
