"""Two ranks make the same update as one process."""

from __future__ import annotations

from pathlib import Path

from rank_processes import run_ranks

DEFINITIONS = """
import language_rounds as rounds
from swarmgame.game.components import ComponentContext
from swarmgame.trainer.grpo.config import CriticOptions
from swarmgame.trainer.policy_gradient import PolicyGradientConfig, PolicyGradientTrainer
cache = Path(sys.argv[1])

def gap(left, right):
    assert left.keys() == right.keys() and left
    return max(float((left[n]["exp_avg"] - right[n]["exp_avg"]).abs().max()) for n in left)

def language_model(ranks, **options):
    # AdamW makes a full step of any gradient, even of a rounding error; hence the small learning rate.
    options["learning_rate"] = 1e-4
    single, joined = rounds.trainer(cache, **options), rounds.trainer(cache, ranks=ranks, **options)
    for number in range(2):
        round = rounds.round_of(number)
        remote = rounds.trainer(cache, model=rounds.MODEL + "&seed=5")
        other = rounds.contribution_of(remote, rounds.round_of(number, peer="other"))
        state = rounds.state_of(round, [rounds.contribution_of(single, round), other])
        one, two = (t.train(state, rounds.scored(state)) for t in (single, joined))
        left, right = (t.state_dict()["optimization"] for t in (single, joined))
        assert gap(left["moments"], right["moments"]) < 1e-6, options
        moved = max(float((left["weights"][n] - right["weights"][n]).abs().max()) for n in left["weights"])
        assert moved < 1e-5, moved
        assert all(abs(one[n] - two[n]) < 1e-4 for n in one if one[n] == one[n]), (one, two)
        joined.load_state_dict(single.state_dict())  # rounding must not add up over the rounds
    groups = rounds.contribution_of(joined, rounds.round_of(9)).groups
    assert [g.question_id for g in groups] == [q.id for q in rounds.questions()]
    assert all(p == groups for p in map(eval_groups, ranks.gather(repr(groups).encode()), [groups] * ranks.size))
    ids, = [g for g in groups if g.question_id == rounds.questions()[1].id]
    prompt = [ids.prompt.token_ids] * len(ids.rollouts)
    logprobs = joined.policy.score(prompt, [r.token_ids for r in ids.rollouts])[0]
    # Each prompt gets its own completions back.
    assert abs(float(logprobs[0, 0].detach()) - ids.rollouts[0].logprobs[0]) < 1e-4

def ahead(ranks):
    single, joined = (rounds.trainer(cache, overlap=True, ranks=r) for r in (ComponentContext().ranks, ranks))
    prompts = [rounds.Prompt.from_question(question, question.text + " stage 0") for question in rounds.questions()]
    for number in range(3):
        round = rounds.round_of(number)
        contribution = rounds.contribution_of(joined, round)
        assert contribution.policy_version == max(0, number - 1), contribution.policy_version
        joined.generate_ahead(prompts, rounds.round_of(number + 1))
        ranks.broadcast(b"other collectives go on" if ranks.rank == 0 else None)
        state = rounds.state_of(round, [contribution])
        joined.train(state, rounds.scored(state))
    # One rank saves, all load: the rollouts of both are in it.
    saved = joined.state_dict()
    assert len(ranks.gather(repr(saved["ahead"]).encode())) == 2
    assert len(set(ranks.gather(repr(saved["ahead"]).encode()))) == 1
    resumed = rounds.trainer(cache, overlap=True, ranks=ranks)
    resumed.load_state_dict(saved)
    one, other = (rounds.contribution_of(learner, rounds.round_of(3)) for learner in (resumed, joined))
    assert one.groups == other.groups
    lone = rounds.trainer(cache, overlap=True)
    lone.load_state_dict(saved)
    # Rollouts from the seeds of other ranks are not used.
    assert rounds.contribution_of(lone, rounds.round_of(3)).policy_version == lone.policy_version
    joined.close()

def eval_groups(payload, groups):
    assert payload == repr(groups).encode()
    return groups

def network(ranks):
    config = PolicyGradientConfig(actions=5, generations=7)
    both = (ComponentContext().ranks, ranks)
    learners = [PolicyGradientTrainer(config, ComponentContext(peer="me", ranks=r)) for r in both]
    round = rounds.round_of()
    contributions = [rounds.contribution_of(learner, round) for learner in learners]
    assert contributions[0].groups == contributions[1].groups
    state = rounds.state_of(round, contributions[:1])
    for learner in learners:
        learner.train(state, rounds.scored(state, lambda r: float(r.text == "3")))
    left, right = (learner.state_dict()["optimization"]["moments"] for learner in learners)
    assert gap(left, right) < 1e-6
"""


PLAY = """
assert ranks.size == 2
language_model(ranks)
language_model(ranks, loss_type="grpo", beta=0.1)
language_model(ranks, loss_type="dr_grpo", scale_rewards="batch", top_entropy_quantile=0.5)
language_model(ranks, baseline="value", scale_rewards="batch", critic=CriticOptions(learning_rate=1e-4))
ahead(ranks)
network(ranks)
"""


def test_two_ranks_make_the_update_of_one(tmp_path: Path) -> None:
    codes, output = run_ranks(PLAY, 2, tmp_path, imports=DEFINITIONS)
    assert codes == [0, 0], output
