"""GameState: every contribution of a round so far, as a tree round → stage → peer → question → rollouts.

Plain immutable records; nothing here depends on models, sockets or files. Invariant: a contribution is never changed
once it is added; every `with_…` method returns a new state. The prompts that a policy trains on are therefore exactly
those that it generated from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from swarmgame.game.rollout import FinishReason, Rollout, Segment
from swarmgame.seeds import derive_seed

__all__ = [
    "Contribution",
    "FinishReason",
    "GameState",
    "Group",
    "GroupKey",
    "Message",
    "PeerId",
    "Prompt",
    "Question",
    "QuestionRef",
    "Rewards",
    "Rollout",
    "Round",
    "Sampling",
    "Segment",
]

PeerId = str
"""A libp2p peer id (base58 of the identity multihash of a secp256k1 public key), or any unique name in tests."""


@dataclass(frozen=True, slots=True)
class QuestionRef:
    """The source of a question: enough for any peer to regenerate the question and its answer.

    Args:
        environment: name of the environment or dataset in the DataManager.
        config: short digest of its configuration; a peer with a different configuration cannot regenerate the
            question.
        seed: seed of the stream, in [0, 2**62).
        index: position in the stream, non-negative.
    """

    environment: str
    config: str
    seed: int
    index: int

    @property
    def id(self) -> str:
        """Return sixteen hexadecimal digits that identify the question, the same on every peer."""
        text = json.dumps([self.environment, self.config, self.seed, self.index])
        return hashlib.blake2b(text.encode(), digest_size=8, person=b"swarmgame-item").hexdigest()


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping if isinstance(mapping, MappingProxyType) else MappingProxyType(dict(mapping))


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a round. Only its reference is sent to other peers; they regenerate the rest from it.

    Args:
        reference: its source.
        text: the question itself; empty in a game without text.
        answer: the correct answer; empty where the reward needs none.
        metadata: data for rewards and later stages; local.
        payload: an image, a board, …; local, not interpreted by the game loop.
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
    """One turn of a conversation, in the form that chat templates take."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of the policy for one question in one stage.

    Args:
        question_id: id of the question.
        messages: the conversation; empty in a game without text.
        token_ids: the ids that the policy read, filled in by the Trainer; empty for a policy that does not read
            tokens. Also empty in groups of other peers: their prompts are regenerated here, and the Trainer tokenises
            the messages itself.
        payload: input of a policy that does not read text (an image tensor, a board); local, never sent.
    """

    question_id: str
    messages: tuple[Message, ...] = ()
    token_ids: tuple[int, ...] = ()
    payload: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def from_question(cls, question: Question, text: str | None = None, *, system: str = "") -> Prompt:
        """Return a prompt of one user message: the given text, or else the question's own."""
        user = Message("user", question.text if text is None else text)
        messages = (Message("system", system), user) if system else (user,)
        return cls(question_id=question.id, messages=messages, payload=question.payload)

    @property
    def text(self) -> str:
        """The contents of the messages, joined by blank lines: the input of a policy without a chat template."""
        return "\n\n".join(message.content for message in self.messages)


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
    """The groups that one peer publishes in one stage.

    Args:
        peer: the author.
        round, stage: both from 0.
        groups: one a prompt; each question at most once.
        references: of every question in the groups, so that a receiver can regenerate it.
        tokenizer: hash of the tokenizer (or action space) that the ids belong to.
        policy_version: number of updates of the sampling policy.
        role: of the author in that round. Other peers replace it by the one that they assign themselves.
    """

    peer: PeerId
    round: int
    stage: int
    groups: tuple[Group, ...]
    references: Mapping[str, QuestionRef]
    tokenizer: str = ""
    policy_version: int = 0
    role: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "references", _frozen(self.references))
        question_ids = [group.question_id for group in self.groups]
        if len(set(question_ids)) != len(question_ids):
            raise ValueError(f"a question appears twice in the contribution of {self.peer}")
        unknown = [question_id for question_id in question_ids if question_id not in self.references]
        if unknown:
            raise ValueError(f"no reference for questions {unknown}")

    def group(self, question_id: str) -> Group | None:
        return next((group for group in self.groups if group.question_id == question_id), None)


class GroupKey(NamedTuple):
    """The position of a group in the tree of a `GameState`."""

    round: int
    stage: int
    peer: PeerId
    question_id: str


Rewards = Mapping[GroupKey, Sequence[float]]
"""One float per rollout of every scored group; NaN marks a rollout that could not be scored."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an evaluation samples: `samples` rollouts a question at this temperature; None is that of training."""

    samples: int
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """One round, as one peer sees it.

    Args:
        number: from 0.
        seed: the same for every peer of the swarm.
        peer_seed: this peer's own.
        stages: number of stages, at least 1.
        peer: id of this peer.
        members: sorted ids of the live members, this peer included.
        role: assigned by the RoleManager; empty where the game has no roles.
        evaluation: a pass over held-out questions by this peer only: nothing is published and nothing is trained.
        stage: the current stage, from 0; part of every seed that sampling uses.
        sampling: how an evaluation samples; None as the trainer's own options say, usually the likeliest answer.
        roles: of all members, by peer; a member without a role has an empty one.
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
    sampling: Sampling | None = None
    roles: Mapping[PeerId, str] = field(default_factory=dict, hash=False)

    def player(self, role: str, question_id: str) -> PeerId:
        """Return the peer that plays a role on a question: one of those with this role, by a hash of both, so that
        all peers name the same one and each role plays about as many questions with each peer. In an evaluation it is
        this peer, whatever the role. Empty where no member has the role.
        """
        if self.evaluation:
            return self.peer
        players = (peer for peer, assigned in self.roles.items() if assigned == role)
        return max(players, key=lambda peer: (derive_seed(self.seed, "player", question_id, peer), peer), default="")


@dataclass(frozen=True)
class GameState:
    """Every contribution of one round so far.

    Args:
        round: the round, as this peer sees it.
        questions: by id: our own, and those of other peers that we could regenerate.
        question_ids: ids of our own questions, in the order of `round_data`.
        stages: for each stage that has begun, the contributions by peer.
        late: contributions of earlier rounds that are still usable.
        external: groups of other peers that were selected for training, in order.
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
        """Return a state with more questions; a question that is already present stays as it is."""
        return replace(
            self, questions=_frozen({question.id: question for question in questions} | dict(self.questions))
        )

    def with_contribution(self, contribution: Contribution) -> GameState:
        """Return a state with one more contribution: of this round in its stage, of an earlier round in `late`.

        Raises:
            ValueError: the peer has already contributed to that stage, or the stage or round has not begun.
        """
        if contribution.round < self.round.number:
            if any(
                (c.round, c.stage, c.peer) == (contribution.round, contribution.stage, contribution.peer)
                for c in self.late
            ):
                raise ValueError(
                    f"{contribution.peer} has already contributed to round {contribution.round}, "
                    f"stage {contribution.stage}"
                )
            return replace(self, late=(*self.late, contribution))
        if contribution.round > self.round.number:
            raise ValueError(f"round {contribution.round} has not begun; this is round {self.round.number}")
        stage = contribution.stage
        if not 0 <= stage <= len(self.stages):
            raise ValueError(f"stage {stage} has not begun; {len(self.stages)} stages have")
        stages = [*self.stages, MappingProxyType({})] if stage == len(self.stages) else list(self.stages)
        if contribution.peer in stages[stage]:
            raise ValueError(f"{contribution.peer} has already contributed to stage {stage}")
        stages[stage] = _frozen({**stages[stage], contribution.peer: contribution})
        return replace(self, stages=tuple(stages))

    def with_external(self, keys: Iterable[GroupKey]) -> GameState:
        return replace(self, external=tuple(keys))

    # ── reading
    @property
    def peer(self) -> PeerId:
        return self.round.peer

    def contributions(self, stage: int) -> tuple[Contribution, ...]:
        """Return the contributions of a stage, sorted by peer."""
        if stage >= len(self.stages):
            return ()
        return tuple(self.stages[stage][peer] for peer in sorted(self.stages[stage]))

    def own(self, stage: int) -> Contribution | None:
        return self.stages[stage].get(self.peer) if stage < len(self.stages) else None

    def groups_for(self, stage: int, question_id: str) -> tuple[tuple[PeerId, Group], ...]:
        """Return the groups of all peers for one question in a stage, sorted by peer."""
        pairs = ((c.peer, c.group(question_id)) for c in self.contributions(stage))
        return tuple((peer, group) for peer, group in pairs if group is not None)

    def move(self, question_id: str, stage: int, role: str) -> Rollout | None:
        """Return the move that the player of a role made on a question: the first rollout of its group. None where it
        made none. Groups of other peers are no moves.
        """
        if stage >= len(self.stages):
            return None
        contribution = self.stages[stage].get(self.round.player(role, question_id))
        group = contribution.group(question_id) if contribution is not None else None
        return group.rollouts[0] if group is not None and group.rollouts else None

    def groups(self) -> Iterator[tuple[GroupKey, Group]]:
        """Iterate over all groups, late ones last, in an order that does not depend on arrival."""
        current = [c for stage in range(len(self.stages)) for c in self.contributions(stage)]
        late = sorted(self.late, key=lambda c: (c.round, c.stage, c.peer))
        for contribution in (*current, *late):
            for group in contribution.groups:
                yield GroupKey(contribution.round, contribution.stage, contribution.peer, group.question_id), group

    def own_groups(self) -> tuple[tuple[GroupKey, Group], ...]:
        """Return our own groups of this round, by stage."""
        return tuple((k, g) for k, g in self.groups() if k.peer == self.peer and k.round == self.round.number)

    def remote_groups(self) -> tuple[tuple[GroupKey, Group], ...]:
        """Return the groups of other peers, late ones included."""
        return tuple((k, g) for k, g in self.groups() if k.peer != self.peer)

    def contribution_of(self, key: GroupKey) -> Contribution:
        """Return the contribution that contains a group.

        Raises:
            KeyError: there is no such contribution.
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
