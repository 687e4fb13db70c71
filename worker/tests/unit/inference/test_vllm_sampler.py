"""Generation by a vLLM server, against a stand-in that implements its protocol over a tiny model; its log-probabilities are
true.
"""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chi2
from vllm_samplers import EOS, PROMPTS, flat, only, sampler_for, scored, tiny
from vllm_stand_in import Engine, StandIn

from swarmgame.errors import Temporary
from swarmgame.inference.sampler import SamplingParams

# ── properties of every sampler


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_distribution_is_the_policys_own(serve, temperature):
    model, draws = tiny(vocabulary=5, spread=0.2), 4000
    sampler, _ = serve(model)
    [group] = sampler.sample([[2, 3]], draws, SamplingParams(1, temperature=temperature), 3)
    counts = torch.bincount(torch.tensor([completion.token_ids[0] for completion in group]), minlength=5)
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([[2, 3]])).logits[0, -1] / temperature, -1) * draws
    assert float(((counts - expected) ** 2 / expected).sum()) < chi2.ppf(0.999, 4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_full_forward(serve, temperature):
    model = tiny()
    sampler, _ = serve(model)
    fresh = flat(sampler.sample(PROMPTS, 6, SamplingParams(30, temperature=temperature), 2))
    prompts = [prompt for prompt in PROMPTS for _ in range(6)]
    for row, completion in zip(scored(model, fresh, prompts, temperature), fresh, strict=True):
        torch.testing.assert_close(
            row[: len(completion.logprobs)], torch.tensor(completion.logprobs), atol=1e-4, rtol=0
        )


def test_with_filters_logprobs_are_those_of_what_was_sampled_from(serve):
    model = tiny()
    sampler, _ = serve(model)
    fresh = flat(sampler.sample(PROMPTS, 8, SamplingParams(4, top_k=2), 2))
    plain = scored(model, fresh, [prompt for prompt in PROMPTS for _ in range(8)]).detach()
    for row, completion in zip(plain.detach(), fresh, strict=True):
        assert all(sampled >= float(own) - 1e-4 for own, sampled in zip(row, completion.logprobs, strict=False))
    assert (
        max(
            sum(completion.logprobs) - float(row[: len(completion.logprobs)].sum())
            for row, completion in zip(plain.detach(), fresh, strict=True)
        )
        > 0.1
    )


def test_eos_is_the_last_id_of_a_stopped_completion_and_appears_nowhere_else(serve):
    sampler, _ = serve(tiny(), eos=(EOS, 4, 9))
    fresh = flat(sampler.sample(PROMPTS, 25, SamplingParams(12), 4))
    assert {completion.stopped for completion in fresh} == {True, False}
    assert {completion.token_ids[-1] for completion in fresh if completion.stopped} == {EOS, 4, 9}
    for completion in fresh:
        assert not {EOS, 4, 9} & set(completion.token_ids[:-1])
        assert completion.stopped or len(completion.token_ids) == 12
        assert len(completion.token_ids) == len(completion.logprobs)
        assert all(logprob <= 0 for logprob in completion.logprobs)


def test_eos_is_not_sampled_before_the_minimum_length(serve):
    sampler, _ = serve(tiny())
    fresh = flat(sampler.sample(PROMPTS, 25, SamplingParams(12, min_new_tokens=7), 4))
    assert min(len(completion.token_ids) for completion in fresh) >= 8
    assert any(completion.stopped for completion in fresh)


def test_each_prompt_has_its_own_budget(serve):
    sampler, _ = serve(tiny())
    budgets = [3, 20, 1, 12]
    groups = sampler.sample(PROMPTS, 8, SamplingParams(20, min_new_tokens=2), 6, budgets=budgets)
    for group, budget in zip(groups, budgets, strict=True):
        assert all(completion.stopped or len(completion.token_ids) == budget for completion in group)
        assert max(len(completion.token_ids) for completion in group) <= budget
    with pytest.raises(ValueError, match="one a prompt, each of 1 to 20 tokens"):
        sampler.sample(PROMPTS, 8, SamplingParams(20), 6, budgets=[3, 21, 1, 12])


def test_the_same_seed_makes_the_same_requests_however_prompts_are_split(serve):
    sampler, _ = serve(tiny())
    first = sampler.sample(PROMPTS, 4, SamplingParams(16), 5)
    assert sampler.sample(PROMPTS, 4, SamplingParams(16), 5) == first
    assert sampler.sample(PROMPTS, 4, SamplingParams(16), 6) != first
    split = [
        *sampler.sample(PROMPTS[:1], 4, SamplingParams(16), 5),
        *sampler.sample(PROMPTS[1:], 4, SamplingParams(16), 5, first_row=4),
    ]
    assert split == first


def test_equal_prompts_of_one_call_are_sampled_with_different_seeds(serve):
    sampler, _ = serve(tiny())
    groups = sampler.sample([[5, 6]] * 6, 4, SamplingParams(16), 5)
    assert len({completion.token_ids for completion in flat(groups)}) > 12


def test_greedy_completions_are_requested_once_and_repeated(serve):
    model = tiny()
    sampler, server = serve(model)
    groups = sampler.sample(PROMPTS, 3, SamplingParams(8, greedy=True, top_k=5, top_p=0.5), 0)
    assert all(group[0] == group[1] == group[2] for group in groups)
    assert [body["n"] for path, body in server.engine.requests if path == "/v1/completions"] == [1] * 4
    with torch.no_grad():
        assert groups[1][0].token_ids[0] == int(model(torch.tensor([PROMPTS[1]])).logits[0, -1].argmax())


def test_no_prompts_are_no_request(serve):
    sampler, server = serve(tiny())
    assert sampler.sample([], 3, SamplingParams(4), 0) == []
    assert server.engine.requests == []


# ── weights


def test_an_update_is_pushed_and_changes_what_is_sampled(serve, tmp_path):
    model = tiny()
    sampler, server = serve(model)
    before = sampler.sample(PROMPTS, 4, SamplingParams(16), 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    sampler.update_weights(1)
    after = sampler.sample(PROMPTS, 4, SamplingParams(16), 5)
    assert after != before
    fresh = flat(after)
    for row, completion in zip(scored(model, fresh, [p for p in PROMPTS for _ in range(4)]), fresh, strict=True):
        torch.testing.assert_close(
            row[: len(completion.logprobs)], torch.tensor(completion.logprobs), atol=1e-4, rtol=0
        )
    assert server.engine.weight_version.endswith("-1")
    assert [path.name.rsplit("-", 1)[1] for path in (tmp_path / "weights").iterdir()] == ["1"]
    counts = sampler.metrics()
    assert (counts["engine_pushes"], counts["engine_requests"], counts["engine_retries"], counts["engine_stale"]) == (
        2,
        8,
        0,
        0,
    )
    assert counts["engine_seconds"] > 0
    assert counts["engine_push_seconds"] > 0
    assert sampler.metrics()["engine_requests"] == 0
    sampler.close()
    assert not list((tmp_path / "weights").iterdir())


def test_adapters_are_swapped_the_new_one_before_the_old_one_goes(tmp_path):
    model = tiny()
    engine = Engine(copy.deepcopy(model), lora=True, dev=False)
    torch.manual_seed(3)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    )
    with StandIn(engine) as server:
        sampler = sampler_for(model, server.url, tmp_path, adapters=adapted)
        before = sampler.sample(PROMPTS, 4, SamplingParams(16), 5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(torch.randn_like(parameter))
        sampler.update_weights(7)
        after = sampler.sample(PROMPTS, 4, SamplingParams(16), 5)
        assert after != before
        fresh = flat(after)
        for row, completion in zip(scored(model, fresh, [p for p in PROMPTS for _ in range(4)]), fresh, strict=True):
            torch.testing.assert_close(
                row[: len(completion.logprobs)], torch.tensor(completion.logprobs), atol=1e-4, rtol=0
            )
        assert [name.rsplit("-", 1)[1] for name in engine.adapters] == ["7"]
        changes = [path for path, _ in engine.requests if "lora" in path]
        assert changes == ["/v1/load_lora_adapter", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"]


@pytest.mark.parametrize("versions", [True, False])
def test_a_server_that_was_started_again_gets_its_weights_back_and_that_is_counted(serve, versions):
    model = tiny()
    sampler, server = serve(model, versions=versions)
    before = sampler.sample(PROMPTS, 4, SamplingParams(16), 5)
    server.restart()
    assert sampler.sample(PROMPTS, 4, SamplingParams(16), 5) == before
    counts = sampler.metrics()
    assert counts["engine_stale"] == 1
    assert counts["engine_retries"] == 1
    assert counts["engine_pushes"] == 2


def test_an_adapter_that_is_gone_is_loaded_again(tmp_path):
    model = tiny()
    engine = Engine(copy.deepcopy(model), lora=True, dev=False)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    )
    with StandIn(engine) as server:
        sampler = sampler_for(model, server.url, tmp_path, adapters=adapted)
        before = sampler.sample(PROMPTS, 4, SamplingParams(16), 5)
        server.restart()
        assert sampler.sample(PROMPTS, 4, SamplingParams(16), 5) == before
        assert sampler.metrics()["engine_stale"] == 1


def test_a_server_that_always_loses_its_weights_is_given_up(serve):
    sampler, server = serve(tiny())

    def forget(path, answer):
        if path == "/update_weight_version":
            server.engine.weight_version = "default"
        return answer

    server.engine.faults.append(forget)
    with pytest.raises(
        Temporary, match=r"failed 5 times: the answer is of the weights \['default'\], expected policy-.*-0"
    ):
        sampler.sample(PROMPTS, 2, SamplingParams(4), 0)


class TwoRanks:
    """Two ranks as two threads of a test."""

    size = 2

    def __init__(self, rank, box, barrier):
        self.rank, self._box, self._barrier = rank, box, barrier

    def broadcast(self, payload):
        if self.rank == 0:
            self._box["payload"] = payload
        self._barrier.wait(20)
        found = self._box["payload"]
        self._barrier.wait(20)
        return found


def of_both_ranks(work):
    """What both threads return or raise, by rank."""
    found = {}

    def run(rank):
        try:
            found[rank] = work(rank)
        except Exception as error:  # noqa: BLE001 — inspected by the test
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found[0], found[1]


def test_ranks_share_a_server_and_its_weights_and_learn_of_a_failure_together(tmp_path):
    model, box, barrier = tiny(), {}, threading.Barrier(2)
    with StandIn(Engine(tiny(seed=99))) as server:
        one, two = of_both_ranks(
            lambda rank: sampler_for(model, server.url, tmp_path, ranks=TwoRanks(rank, box, barrier))
        )
        samplers = [one, two]
        assert one._label == two._label
        of_both_ranks(lambda rank: samplers[rank].update_weights(3))
        first, second = of_both_ranks(lambda rank: samplers[rank].sample(PROMPTS, 2, SamplingParams(6), 5))
        assert first == second
        assert [sampler.metrics()["engine_pushes"] for sampler in samplers] == [1, 0]
        server.engine.faults.append(only("/collective_rpc", (500, {"error": {"message": "disk", "code": 500}})))
        failures = of_both_ranks(lambda rank: samplers[rank].update_weights(4))
        assert all(isinstance(failure, Temporary) for failure in failures)
        assert "rank 0 could not push the weights" in str(failures[1])
