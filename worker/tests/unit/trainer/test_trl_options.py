"""The names of TRL's options: passed on, or refused with what to use instead. TRL itself is not imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.lookup import validate_config
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.trl import trainer as trl_trainer
from swarmgame.trainer.trl.config import TrlConfig
from swarmgame.trainer.trl.options import checked_options
from swarmgame.trainer.trl.trainer import TrlTrainer


def refusal(**options: object) -> str:
    with pytest.raises(InvalidManifest) as caught:
        checked_options(options)
    return str(caught.value)


def test_options_pass_with_the_types_that_trl_expects() -> None:
    found = checked_options({"learning_rate": "1e-5", "num_iterations": 2, "scale_rewards": "none", "delta": None})
    assert found == {"learning_rate": 1e-5, "num_iterations": 2, "scale_rewards": "none", "delta": None}


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("num_generations", "generations"),
        ("max_completion_length", "maxNewTokens"),
        ("output_dir", "the folder of the run"),
        ("logging_steps", "spec.observability"),
        ("report_to", "spec.observability.trackers"),
        ("seed", "spec.game.seed"),
        ("per_device_train_batch_size", "tokensPerMicroBatch"),
        ("gradient_accumulation_steps", "tokensPerMicroBatch"),
        ("vllm_server_port", "sampler"),
        ("bf16", "dtype"),
        ("save_steps", "checkpoints"),
    ],
)
def test_what_the_swarm_decides_is_refused_with_what_to_use(name: str, instead: str) -> None:
    text = refusal(**{name: 4})
    assert text.startswith(f"spec.game.trainer.with.options.{name} is 4; expected no such option, because the swarm")
    assert instead in text


@pytest.mark.parametrize("name", ["deepspeed", "sync_ref_model", "use_adaptive_entropy", "entropy_target"])
def test_what_has_no_place_in_a_swarm_is_refused_with_the_reason(name: str) -> None:
    assert f"options.{name} is true; expected no such option: " in refusal(**{name: True})


def test_an_unknown_name_is_refused_with_the_closest_one() -> None:
    assert "options.lossType is not a field" in refusal(lossType="dapo")
    assert 'did you mean "loss_type"?' in refusal(lossType="dapo")
    assert 'did you mean "learning_rate"?' in refusal(learning_rat=1e-5)
    assert "one of loss_type, epsilon, " in refusal(q=1)


def test_a_value_of_a_wrong_type_is_refused_and_so_is_every_other_mistake() -> None:
    text = refusal(epsilon="much", seed=1, num_iterations=1.5)
    assert 'options.epsilon is "much"; expected a valid number' in text
    assert "options.seed is 1" in text
    assert "options.num_iterations is 1.5" in text


def test_loss_and_optimizer_of_grpo_are_no_fields_beside_the_options() -> None:
    with pytest.raises(InvalidManifest, match=r"with\.learningRate is not a field"):
        validate_config(TrlTrainer, {"learningRate": 1e-5}, "spec.game.trainer.with")
    assert set(TrlConfig.model_fields) - {"options"} < set(GRPOConfig.model_fields)


def test_several_processes_of_a_peer_are_refused() -> None:
    assert TrlTrainer.doubts(TrlConfig(), 1) == ()
    assert TrlTrainer.doubts(TrlConfig(), None) == ()
    with pytest.raises(InvalidManifest, match=r"spec\.peers\.processesPerPeer is 2; expected 1: "):
        TrlTrainer.doubts(TrlConfig(), 2)


def test_without_the_package_a_check_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl_trainer, "find_spec", lambda name: None)
    with pytest.raises(InvalidManifest, match=r"spec\.game\.trainer\.use is \"trl\"; .*swarmgame\[trl\]"):
        TrlTrainer.check_with(TrlConfig(), ComponentContext(), None)


def test_the_trainer_is_found_without_importing_trl() -> None:
    code = "import sys, swarmgame.trainer.trl.trainer; sys.exit('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
