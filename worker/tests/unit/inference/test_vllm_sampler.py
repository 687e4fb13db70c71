"""Generation by a vLLM server, against a stand-in that implements its protocol over a tiny model; its log-probabilities are
true.
"""

from __future__ import annotations

import copy
import threading
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chi2
from transformers import Qwen2Config, Qwen2ForCausalLM
from vllm_stand_in import Engine, StandIn

from swarmgame.errors import BadData, InvalidManifest, Temporary
from swarmgame.game.ranks import OneRank
from swarmgame.inference import vllm as vllm_module
from swarmgame.inference.sampler import SamplingParams
from swarmgame.inference.vllm import VllmSampler
from swarmgame.inference.vllm_client import VllmClient
from swarmgame.trainer.grpo.logprobs import completion_logprobs
from swarmgame_api.sampler import VllmOptions

PAD, EOS = 0, 1
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [3], [12, 4, 9], [5, 6, 7]]


def tiny(vocabulary=19, spread=0.4, seed=7):
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    ids = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, initializer_range=spread, **shape, **ids)).eval()


def sampler_for(model, url, folder, *, eos=(EOS,), adapters=None, longest=64, ranks=None, **options):
    saved = adapters or model
    settings = VllmOptions(engine="vllm", url=url, **({"startup_seconds": 1, "timeout_seconds": 20} | options))

    def client(address):
        return VllmClient(
            address,
            eos_token_ids=eos,
            vocabulary=model.config.vocab_size,
            timeout_seconds=settings.timeout_seconds,
            api_key="key",
        )

    shared = {"adapters": adapters is not None, "folder": folder, "longest": longest, "ranks": ranks or OneRank()}
    return VllmSampler(settings, client, saved.save_pretrained, process=None, url=url, **shared)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(vllm_module, "FIRST_DELAY_SECONDS", 0.01)


@pytest.fixture
def serve(tmp_path):
    """Start a server of another model than the policy, and a sampler of the policy: only a push makes them agree."""
    servers = []

    def start(model, *, eos=(EOS,), longest=64, options=None, **engine):
        other = tiny(vocabulary=model.config.vocab_size, seed=99)
        server = StandIn(Engine(other, **engine))
        server.__enter__()
        servers.append(server)
        return sampler_for(model, server.url, tmp_path / "weights", eos=eos, longest=longest, **(options or {})), server

    yield start
    for server in servers:
        server.__exit__()


def flat(groups):
    return [completion for group in groups for completion in group]


def scored(model, completions, prompts, temperature=1.0):
    return completion_logprobs(model, prompts, [c.token_ids for c in completions], temperature, with_entropy=False)[0]


# ── what every sampler promises


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


# ── servers that are wrong


def change_choice(**fields):
    """A fault that rewrites the first choice; a function is given what was there."""

    def fault(path, answer):
        if path == "/v1/completions":
            choice = answer["choices"][0]
            for name, value in fields.items():
                choice[name] = value(choice) if callable(value) else value
        return answer

    return fault


def only(path, answer):
    return lambda at, given: answer if at == path else given


LIES = {
    "no JSON": (only("/v1/completions", b"{nonsense"), "no JSON"),
    "a page": (only("/v1/completions", "<html>hello</html>"), "no list of choices"),
    "NaN": (only("/v1/completions", b'{"choices": [NaN]}'), "NaN is no JSON"),
    "too few": (
        lambda path, answer: {**answer, "choices": answer["choices"][:1]} if path == "/v1/completions" else answer,
        "1 choices for 2",
    ),
    "unknown ids": (change_choice(token_ids=lambda c: [19] * len(c["token_ids"])), "outside the vocabulary of 19"),
    "negative ids": (change_choice(token_ids=lambda c: [-1] * len(c["token_ids"])), "outside the vocabulary"),
    "fewer logprobs": (
        change_choice(logprobs=lambda c: {"token_logprobs": c["logprobs"]["token_logprobs"][1:]}),
        "log-probabilities for a budget",
    ),
    "no logprobs": (change_choice(logprobs=None), "without token_ids or logprobs"),
    "certain": (
        change_choice(logprobs=lambda c: {"token_logprobs": [0.5] * len(c["token_ids"])}),
        "log-probability 0.5 of a sampled",
    ),
    "impossible": (
        change_choice(logprobs=lambda c: {"token_logprobs": [-9999.0] * len(c["token_ids"])}),
        "log-probability -9999.0",
    ),
    "a null": (
        change_choice(logprobs=lambda c: {"token_logprobs": [None] * len(c["token_ids"])}),
        "log-probability None",
    ),
    "other tokens": (
        change_choice(logprobs=lambda c: {**c["logprobs"], "tokens": ["token_id:99"] * 9}),
        "other tokens than the ids",
    ),
    "another prompt": (change_choice(prompt_token_ids=[1, 2, 3]), "another prompt"),
    "no end": (
        change_choice(token_ids=[5], logprobs={"token_logprobs": [-1.0]}),
        "neither ended nor used its budget of 6",
    ),
    "beyond the end": (
        change_choice(token_ids=[EOS, 5], logprobs={"token_logprobs": [-1.0, -1.0]}),
        "behind an end-of-sequence",
    ),
    "too long": (change_choice(token_ids=[5] * 7, logprobs={"token_logprobs": [-1.0] * 7}), "7 tokens"),
    "oversized": (only("/v1/completions", b"[" + b" " * 3_000_000), "more than 1,0"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_no_sampler_may_give_is_an_error_that_names_it(serve, lie):
    fault, message = LIES[lie]
    sampler, server = serve(tiny())
    server.engine.faults.append(fault)
    with pytest.raises(BadData, match=message):
        sampler.sample([[5, 6]], 2, SamplingParams(6), 0)


def test_a_server_that_is_away_is_temporary_and_names_the_cure(tmp_path):
    sampler = sampler_for(tiny(), "http://127.0.0.1:9", tmp_path)
    with pytest.raises(
        Temporary, match=r"no vLLM server was ready at http://127\.0\.0\.1:9 within 1 seconds\. See whether it runs"
    ):
        sampler.sample(PROMPTS, 2, SamplingParams(4), 0)


def test_only_missing_completions_are_requested_again_from_a_server_that_hangs_up(serve):
    sampler, server = serve(tiny())
    dropped = []

    def drop(path, answer):
        if path == "/v1/completions" and len(dropped) < 2:
            dropped.append(path)
            return None
        return answer

    server.engine.faults.append(drop)
    groups = sampler.sample(PROMPTS, 2, SamplingParams(4), 0)
    server.engine.faults.clear()
    assert groups == sampler.sample(PROMPTS, 2, SamplingParams(4), 0)
    counts = sampler.metrics()
    assert counts["engine_retries"] >= 1
    assert counts["engine_requests"] < 4 + 4 + 4


def test_a_server_that_is_too_slow_is_temporary_and_the_error_names_the_setting(serve, monkeypatch):
    monkeypatch.setattr(vllm_module, "ATTEMPTS", 2)
    sampler, server = serve(tiny(), options={"timeout_seconds": 1})
    server.engine.faults.append(lambda path, answer: time.sleep(1.5) or answer if path == "/v1/completions" else answer)
    with pytest.raises(Temporary, match=r"not answered within 1 seconds.*sampler\.timeoutSeconds"):
        sampler.sample([[5]], 2, SamplingParams(4), 0)
    assert sampler.metrics()["engine_retries"] == 2


def test_a_server_whose_engine_died_is_temporary(serve):
    sampler, server = serve(tiny())
    dead = (500, {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}})
    server.engine.faults.append(only("/v1/completions", dead))
    with pytest.raises(
        Temporary, match="failed 5 times: /v1/completions answered 500: EngineCore encountered an issue"
    ):
        sampler.sample([[5]], 2, SamplingParams(4), 0)


def test_a_request_that_was_given_up_is_made_again(serve):
    sampler, server = serve(tiny())
    server.engine.faults.append(change_choice(finish_reason="abort"))
    with pytest.raises(Temporary, match="gave a request up"):
        sampler.sample([[5]], 2, SamplingParams(4), 0)


def test_a_server_without_the_endpoints_for_weights_is_refused_with_what_it_needs(serve, tmp_path):
    sampler, _ = serve(tiny(), dev=False)
    with pytest.raises(
        InvalidManifest,
        match=r"sampler\.url is .*has /weight_info: vLLM 0\.30\.0 or newer, with VLLM_SERVER_DEV_MODE=1",
    ):
        sampler.sample(PROMPTS, 2, SamplingParams(4), 0)
    model = tiny()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with (
        StandIn(Engine(tiny(), lora=False)) as server,
        pytest.raises(InvalidManifest, match="--enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
    ):
        sampler_for(model, server.url, tmp_path, adapters=adapted).sample(PROMPTS, 2, SamplingParams(4), 0)


def test_a_server_that_does_not_see_the_folder_has_its_own_error(serve, monkeypatch):
    sampler, server = serve(tiny())
    missing = (
        500,
        {"error": {"message": "Cannot find any model weights with `/x`", "type": "InternalServerError", "code": 500}},
    )
    monkeypatch.setattr(server.engine, "_rpc", lambda body: {})
    server.engine.faults.append(only("/collective_rpc", missing))
    with pytest.raises(Temporary, match=r"Cannot find any model weights .*must see that folder under the same path"):
        sampler.sample(PROMPTS, 2, SamplingParams(4), 0)


def test_a_server_with_too_short_sequences_is_refused(serve):
    sampler, _ = serve(tiny(), max_model_len=63)
    with pytest.raises(InvalidManifest, match=r"sampler\.maxModelLen is 63; expected at least 64"):
        sampler.sample(PROMPTS, 2, SamplingParams(4), 0)


def test_a_completion_that_the_server_cut_short_is_noticed(serve):
    sampler, _ = serve(tiny(), max_model_len=64)
    with pytest.raises(BadData, match=r"neither ended nor used its budget of 100 \(is --max-model-len too small\?\)"):
        sampler.sample([[5] * 60], 8, SamplingParams(100), 0)


def test_a_reload_that_failed_does_not_keep_the_old_label(serve):
    sampler, server = serve(tiny())
    sampler.sample(PROMPTS, 2, SamplingParams(4), 0)
    server.engine.faults.append(only("/collective_rpc", (500, {"error": {"message": "disk", "code": 500}})))
    with pytest.raises(Temporary):
        sampler.update_weights(1)
    assert server.engine.weight_version == "reloading"


def test_a_server_with_raw_logprobs_is_refused_where_they_would_be_wrong(serve):
    sampler, _ = serve(tiny(), processed=False)
    assert sampler.sample(PROMPTS, 2, SamplingParams(4), 0)
    with pytest.raises(InvalidManifest, match="--logprobs-mode=processed_logprobs"):
        sampler.sample(PROMPTS, 2, SamplingParams(4, temperature=0.7), 0)


def test_a_wrong_key_is_named_and_never_shown(serve):
    sampler, _ = serve(tiny(), api_key="another")
    with pytest.raises(
        InvalidManifest, match=r"apiKeyEnv is missing; expected .* a key that .* takes; it answered 401"
    ) as caught:
        sampler.sample(PROMPTS, 2, SamplingParams(4), 0)
    assert "another" not in str(caught.value)
    right, _ = serve(tiny(), api_key="key")
    assert right.sample(PROMPTS, 2, SamplingParams(4), 0)


def test_weights_are_never_changed_under_a_call_of_another_thread(serve):
    model = tiny()
    sampler, server = serve(model)
    sampler.sample(PROMPTS, 2, SamplingParams(4), 0)
    entered = threading.Event()

    def slowly(path, answer):
        if path == "/v1/completions":
            entered.set()
            time.sleep(0.3)
        return answer

    server.engine.faults.append(slowly)
    results = []
    thread = threading.Thread(target=lambda: results.append(sampler.sample(PROMPTS, 2, SamplingParams(4), 0)))
    thread.start()
    assert entered.wait(10)
    sampler.update_weights(1)
    assert not thread.is_alive() or results
    thread.join(20)
    assert len(results) == 1
    assert sampler.metrics()["engine_stale"] == 0


def test_the_folder_of_the_weights_that_cannot_be_written_is_named(serve, tmp_path):
    sampler, _ = serve(tiny())
    Path(tmp_path / "weights").write_text("a file")
    with pytest.raises(Temporary, match=r"the weights cannot be handed over in .*/weights"):
        sampler.sample(PROMPTS, 2, SamplingParams(4), 0)
