"""A round as the author of a contribution saw it, so that prompts may depend on whose turn it is.

Peer, role and seeds are the author's; everything else is what this peer has. The role is the one that this peer assigns
to the author. What an author claims is used only where that is not known: for an author that is no member here, which
`Round.player` never names, and for a late contribution, whose round had other members; and only if it is a role of the
game. So no peer can move for another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from swarmgame.game.roles import RoleManager
from swarmgame.game.state import Contribution, GameState, Question, Round
from swarmgame.seeds import derive_seed


def role_of_author(round: Round, contribution: Contribution, roles: RoleManager | None = None) -> str:
    """Return the role that the author of a contribution has.

    Args:
        round: ours.
        roles: of the game; None: a claim has to be a role that a member has now.
    """
    if contribution.round == round.number and contribution.peer in round.roles:
        return round.roles[contribution.peer]
    named = {role.name for role in roles.roles} if roles is not None else set()
    return contribution.role if contribution.role in (named or set(round.roles.values())) else ""


def state_of_author(
    state: GameState,
    contribution: Contribution,
    questions: Iterable[Question],
    seed: int,
    roles: RoleManager | None = None,
) -> GameState | None:
    """Return the state in which an author made its prompts; None for a later stage of an earlier round, which is gone.

    Args:
        state: ours, with the questions of the contribution.
        questions: of the contribution, as far as they could be regenerated.
        seed: of the game.
        roles: of the game; None: those of an earlier round are taken to be ours.
    """
    round = _round_of_author(state.round, contribution, seed, roles)
    if contribution.stage == 0:
        return GameState.begin(round, questions)
    if contribution.round != state.round.number:
        return None
    stages = state.stages[: contribution.stage]
    before = [stage[contribution.peer] for stage in stages if contribution.peer in stage]
    own = [group.question_id for each in before for group in each.groups] + [question.id for question in questions]
    known = tuple(dict.fromkeys(own))
    return replace(state, round=round, stages=stages, question_ids=known)


def _round_of_author(round: Round, contribution: Contribution, seed: int, roles: RoleManager | None) -> Round:
    author, number = contribution.peer, contribution.round
    role = role_of_author(round, contribution, roles)
    assigned = round.roles
    if number != round.number:
        if roles is not None:
            assigned = roles.round(seed, round.stages, author, number, round.members).roles
        assigned = {**assigned, author: role}
    return replace(
        round,
        number=number,
        seed=derive_seed(seed, "round", number),
        peer_seed=derive_seed(seed, "peer", author, number),
        peer=author,
        role=role,
        roles=assigned,
    )
