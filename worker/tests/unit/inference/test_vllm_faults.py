"""vLLM servers with faults: wrong answers, missing endpoints, restarts, and their errors."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from vllm_samplers import EOS, PROMPTS, only, sampler_for, tiny
from vllm_stand_in import Engine, StandIn

from swarmgame.errors import BadData, InvalidManifest, Temporary
from swarmgame.inference import vllm as vllm_module
from swarmgame.inference.sampler import SamplingParams


def change_choice(**fields):
    """A fault that rewrites the first choice; a function is given what was there."""

    def fault(path, answer):
        if path == "/v1/completions":
            choice = answer["choices"][0]
            for name, value in fields.items():
                choice[name] = value(choice) if callable(value) else value
        return answer

    return fault


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
