"""Replay: a peer's weights made again, offline, from what it generated and received.

The archive holds each round's rollouts, rewards and order; the data makes the questions again, the verification is
repeated, and the trainer takes the same step. After each round the hash of the weights is compared with the recorded
one. It needs the machine and the versions of the run: another processor adds numbers in another order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from swarmgame.archive.files import RoundFile, round_files
from swarmgame.archive.reader import StoredRound, check, load
from swarmgame.archive.rows import contributions_of, rewards_of
from swarmgame.archive.signatures import Proof, proof_of
from swarmgame.errors import BadData, BadUsage
from swarmgame.game.author_prompts import PROMPT_FAILED
from swarmgame.game.components import RewardManager
from swarmgame.game.move_check import ILLEGAL, OTHER_POSITION, PAST_STAGE
from swarmgame.game.protocol import Exchange
from swarmgame.game.sharing_records import SharingRecords
from swarmgame.game.state import Contribution, GameState, GroupKey, Prompt, Rewards, Round
from swarmgame.game.transcripts import MISMATCH
from swarmgame.game.verification import RolloutVerifier
from swarmgame.observability.peer_progress import is_lost
from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.runtime.assembly import (
    Components,
    ResolvedGame,
    assemble,
    context_of,
    local_modules,
    progression_of,
    resolve_game,
    roles_of,
)
from swarmgame.runtime.checkpoint import CheckpointStore
from swarmgame.runtime.weights import weights_hash
from swarmgame_api.manifest import SwarmGame

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Replay:
    """The result of a replay in which all weights were equal.

    Args:
        rounds: those that were trained on, in order.
        start: round of the checkpoint that it began with; None for the initial model.
        missing: rounds of the run that the archive no longer holds.
        weights: hash after the last round.
        proofs: received contributions by what is known of their origin.
    """

    rounds: tuple[int, ...]
    start: int | None
    missing: tuple[int, ...]
    weights: str
    proofs: Mapping[Proof, int]


def replay(
    manifest: SwarmGame,
    directory: PeerDirectory,
    *,
    first: int = 0,
    end: int | None = None,
    folder: Path | None = None,
    notify: Notify = lambda line: None,
) -> Replay:
    """Make a peer's weights again, and compare them after every round.

    Args:
        first, end: rounds to compare, `end` not included; None: to the last one.
        folder: of the author's modules; None: the folder from which the run was started.
        notify: gets a line about each round.

    Raises:
        BadData: the weights differ, the archive is damaged, or it holds too little; names what and where.
        BadUsage: this run cannot be replayed by this process.
    """
    recorded = _recorded_weights(directory)
    files = {file.round: file for file in round_files(directory.rollouts)}
    played = [number for number in recorded if end is None or number < end]
    # The last rounds of a peer that was killed may be in the metrics only.
    reached = [number for number in played if number <= max(files, default=-1)]
    if not reached or reached[-1] < first:
        raise BadData(
            f"{directory.rollouts} holds no such rounds to replay: the peer has not finished one, or "
            "spec.observability.rollouts.enabled is false"
        )
    store = CheckpointStore(directory.root / "checkpoints")
    start, rounds = _plan(reached, files, store.rounds(), first)
    for number in rounds:
        check(files[number])
    stored = load(files[rounds[0]])
    _check_process(manifest, stored)
    origin = folder or Path(stored.head["folder"])
    if not origin.is_dir():
        raise BadUsage(f"{origin}, from which the run was started, is gone; name the game's manifest with --game")
    with local_modules(origin):
        components = _components(manifest, resolve_game(manifest, origin), stored, directory)
        records = SharingRecords(manifest.spec.game.sharing.max_staleness_rounds)
        try:
            if start is not None:
                saved = store.load(start)
                components.trainer.load_state_dict(saved.state["trainer"])
                components.data.load_state_dict(saved.state["data"])
                records.load_state_dict(saved.state.get("sharing_records", {}))
            repeat = _Repeat(manifest, components, records)
            for number in rounds:
                notify(f"round {number}")
                repeat.round(load(files[number]), recorded[number])
        finally:
            components.close()
    missing = tuple(number for number in played if number not in files)
    return Replay(tuple(rounds), start, missing, recorded[rounds[-1]], repeat.proofs)


def _recorded_weights(directory: PeerDirectory) -> dict[int, str]:
    """Return the hash of the weights after each finished round, from the metrics."""
    try:
        # What follows the last line break is a line that is being written, or that a crash cut off.
        lines = directory.metrics.read_text(encoding="utf-8").split("\n")[:-1]
        found = [json.loads(line) for line in lines]
        return {int(line["round"]): str(line["weights"]) for line in found if not is_lost(line)}
    except KeyError as error:
        raise BadData(f"{directory.metrics} has no hashes of weights: an earlier release played the run") from error
    except (OSError, ValueError, TypeError) as error:
        raise BadData(f"{directory.metrics} cannot be read: {error}") from error


def _plan(
    played: Sequence[int], files: Mapping[int, RoundFile], checkpoints: Sequence[int], first: int
) -> tuple[int | None, list[int]]:
    """Return where to start (None: the initial model) and the rounds to repeat: from the newest start before `first`
    whose rounds are all there, or else from the oldest after it.

    Raises:
        BadData: no start has all its rounds.
    """
    starts: list[int | None] = [None, *(number for number in checkpoints if number <= played[-1])]
    after = {start: [number for number in played if start is None or number >= start] for start in starts}
    usable = [start for start in starts if after[start] and all(number in files for number in after[start])]
    if not usable:
        absent = [number for number in played if number not in files]
        raise BadData(
            f"the archive lacks {_span(absent)}, and no checkpoint is newer: nothing can be replayed. "
            "A larger spec.observability.rollouts.maxBytes keeps more rounds, storage.checkpoints.keep more checkpoints"
        )
    before = [start for start in usable if start is None or start <= first]
    chosen = before[-1] if before else usable[0]
    return chosen, after[chosen]


def _span(rounds: Sequence[int]) -> str:
    if len(rounds) == 1:
        return f"round {rounds[0]}"
    gaps = rounds[-1] - rounds[0] + 1 != len(rounds)
    return f"{len(rounds)} rounds from {rounds[0]} to {rounds[-1]}" if gaps else f"rounds {rounds[0]} to {rounds[-1]}"


def _check_process(manifest: SwarmGame, stored: StoredRound) -> None:
    processes, device = stored.head["processes"], stored.head["device"]
    if processes != 1:
        raise BadUsage(
            f"the peer had {processes} processes, which add gradients in an order that one process does not repeat; "
            "only peers with one process can be replayed"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise BadUsage("the peer trained on a GPU, and this machine has none: its weights cannot be made again here")
    if manifest.spec.game.vllm is not None:
        raise BadUsage("the peer generated with a vLLM server; such a run cannot be replayed without one")


class _RecordedRewards(RewardManager):
    """Stands for the game's rewards, which are in the archive: no sandbox is started."""

    def rewards(self, state: GameState) -> Rewards:
        raise NotImplementedError("a replay takes its rewards from the archive")


def _components(
    manifest: SwarmGame, resolved: ResolvedGame, stored: StoredRound, directory: PeerDirectory
) -> Components:
    torch.set_num_threads(stored.head["threads"])
    device = f"cuda:{torch.cuda.current_device()}" if stored.head["device"] == "cuda" else "cpu"
    context = context_of(
        manifest,
        folder=resolved.folder,
        peer=stored.head["peer"],
        device=device,
        directory=directory.root.absolute(),
    )
    return assemble(resolved, context, rewards=_RecordedRewards(None, context))


class _Repeat:
    """Repeats rounds, one after another."""

    def __init__(self, manifest: SwarmGame, components: Components, records: SharingRecords) -> None:
        self._progression = progression_of(manifest)
        self._roles = roles_of(manifest)
        self._components = components
        exchange = Exchange(self._progression.exchange)
        self._verifier = RolloutVerifier(
            components.data,
            components.trainer,
            exchange,
            records.seen,
            components.episodes,
            seed=self._progression.seed,
            roles=self._roles,
        )
        self.proofs: Counter[Proof] = Counter()

    def round(self, stored: StoredRound, recorded: str) -> None:
        """Train on one round.

        Raises:
            BadData: the weights are not the recorded ones; says what else differs.
        """
        head = stored.head
        torch.set_num_threads(head["threads"])
        progression, number = self._progression, int(head["round"])
        round = self._roles.round(progression.seed, progression.stages, head["peer"], number, tuple(head["members"]))
        state, rewards, differences = self._state(round, stored)
        self._components.trainer.train(state, rewards)
        self._components.data.round_finished(state, rewards)
        made = weights_hash(self._components.trainer)
        if made != recorded or head["weights"] != recorded:
            reasons = [
                f"round {number}: the weights are {made}, recorded are {recorded} (metrics) and {head['weights']} "
                "(archive)",
                *differences,
                *(self._other_uses(stored) if made != recorded else ()),
            ]
            if stored.head["versions"]["torch"] != torch.__version__:
                reasons.append(f"torch is {torch.__version__}, and was {stored.head['versions']['torch']}")
            raise BadData("\n  ".join(reasons))
        if differences:
            raise BadData(f"round {number}: the weights are equal, but\n  " + "\n  ".join(differences))

    def _state(self, round: Round, stored: StoredRound) -> tuple[GameState, Rewards, list[str]]:
        """Return the state and the rewards that the trainer got, and in what the archive disagrees with itself."""
        data, differences = self._components.data, []
        state = GameState.begin(round, data.round_data(round))
        rewards: dict[GroupKey, list[float]] = {}
        by_stage: dict[int, list[tuple[Contribution, Mapping[str, Any], dict[str, str]]]] = {}
        own: dict[int, Contribution] = {}
        trainable: set[GroupKey] = set()
        for head, contribution, rows in contributions_of(stored.head, stored.rows):
            rewards |= rewards_of(rows)
            if head["own"]:
                own[head["stage"]] = contribution
                continue
            proof = proof_of(head, contribution, rows, stored.head["run"])
            if contribution.groups:  # the archive keeps no announcement of an empty one, which has nothing to forge
                self.proofs[proof] += 1
            if proof is Proof.FORGED:
                differences.append(f"{_where(contribution)}: it is {proof}")
            outcomes = dict(zip(rows["question"].to_pylist(), rows["outcome"].to_pylist(), strict=True))
            whole = tuple(group for group in contribution.groups if group.question_id not in head["cut"])
            part = replace(
                contribution,
                groups=whole,
                references={group.question_id: contribution.references[group.question_id] for group in whole},
            )
            received = by_stage.setdefault(head["collected_in"], [])
            received.append((part, head, outcomes))
        for stage in range(round.stages):
            prompts = {prompt.question_id: prompt for prompt in data.stage_inputs(state, stage)}
            state = state.with_contribution(_with_payloads(own[stage], prompts, state))
            received = by_stage.get(stage, [])
            arrivals = [head.get("arrival", at) for at, (_, head, _) in enumerate(received)]
            verified = self._verifier.verify(state, [each for each, _, _ in received], prompts, arrivals)
            for (contribution, head, outcomes), reasons in zip(received, verified.reasons, strict=True):
                differences += _other_outcomes(contribution, head, outcomes, reasons)
            state = verified.state
            trainable |= verified.trainable
        external = [key for key in (GroupKey(*key) for key in stored.head["external"]) if key in trainable]
        return state.with_external(external), rewards, differences

    def _other_uses(self, stored: StoredRound) -> list[str]:
        """Name the rollouts whose advantage or weight is not the recorded one, at most three."""
        uses = self._components.trainer.last_update()
        if uses is None:
            return []
        found = []
        names = ("author_round", "stage", "author", "question", "position", "advantage", "weight")
        for *key, position, advantage, weight in zip(*(stored.rows[n].to_pylist() for n in names), strict=True):
            if advantage is None:
                continue
            use = uses.get(GroupKey(*key))
            made = (None, None) if use is None else tuple(use[position])
            for column, before, now in zip(("advantage", "weight"), (advantage, weight), made, strict=True):
                if before != now and not (before != before and now != now):
                    author, question = key[2], key[3]
                    found.append(
                        f"author {author}, group {question}, rollout {position}: {column} is {now}, was {before}"
                    )
        more = [f"and {len(found) - 3} more"] if len(found) > 3 else []
        return [*found[:3], *more]


def _with_payloads(contribution: Contribution, prompts: Mapping[str, Prompt], state: GameState) -> Contribution:
    """Return our own contribution, with the payloads that are not archived."""
    absent = [group.question_id for group in contribution.groups if group.question_id not in state.questions]
    if absent:
        raise BadData(
            f"round {state.round.number}: the data makes other questions than the run's ({absent[0]} is missing): "
            "the game's data or its version has changed"
        )
    groups = []
    for group in contribution.groups:
        made = prompts.get(group.question_id)
        payload = made.payload if made is not None else state.questions[group.question_id].payload
        groups.append(replace(group, prompt=replace(group.prompt, payload=payload)))
    return replace(contribution, groups=tuple(groups))


def _other_outcomes(
    contribution: Contribution, head: Mapping[str, Any], outcomes: Mapping[str, str], reasons: Mapping[str, str]
) -> list[str]:
    """Name the groups that pass the verification now and did not then, or the other way round."""
    # An earlier release wrote no roles. It could not make a later stage's prompts as their author, and trained on none.
    # A group of an earlier round's later stage passed, and copies of it did not; it is refused now, and they pass.
    older = "role" not in head
    refusals = {
        "unresolvable", "prompt-mismatch", "text-mismatch", "unknown-ids", "copied", "words-only", "duplicate",
        "other-role", ILLEGAL, MISMATCH,
        OTHER_POSITION, PAST_STAGE, PROMPT_FAILED,
    }  # fmt: skip
    found = []
    for question, before in outcomes.items():
        now = reasons.get(question, "")
        if older and ((now == "" and before in ("words-only", "copied")) or now in (OTHER_POSITION, PAST_STAGE)):
            continue
        if question in contribution.references and (now or before in refusals) and now != before:
            found.append(f"{_where(contribution)}, group {question}: outcome is {now or 'accepted'}, was {before}")
    return found


def _where(contribution: Contribution) -> str:
    return f"author {contribution.peer}, round {contribution.round}, stage {contribution.stage}"
