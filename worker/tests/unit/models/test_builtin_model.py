"""The builtin model: its tokenizer, its warm start, and its place in the cache."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from language_rounds import Letters

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.demonstrations import Demonstration
from swarmgame.inference.eager import EagerSampler
from swarmgame.inference.sampler import SamplingParams
from swarmgame.models.builtin import BuiltinOptions, build_model
from swarmgame.models.loading import Source, load_model, load_tokenizer
from swarmgame.models.tokenizer import CHARACTERS, character_tokenizer, tokenizer_hash
from swarmgame.models.warmstart import ensure_model, warm_start

TOKENIZER = character_tokenizer()
SMALL = "builtin://tiny?layers=1&hidden=32"


class Unlearnable(Letters):
    """Random answers: no accuracy to reach."""

    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        plain = super().demonstrate(seed, count)
        noise = super().demonstrate(seed + 1, count)
        return [Demonstration(one.prompt, two.completion * 4) for one, two in zip(plain, noise, strict=True)]

    @property
    def fingerprint(self) -> str:
        return "unlearnable-1"


@given(st.text(alphabet=CHARACTERS))
def test_printable_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(text) + 1
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_what_is_not_a_printable_character_becomes_unknown() -> None:
    ids = TOKENIZER("aé\t漢", add_special_tokens=False)["input_ids"]
    assert ids[0] == TOKENIZER.convert_tokens_to_ids("a")
    assert ids[1:] == [TOKENIZER.unk_token_id] * 3


@pytest.mark.parametrize("text", ["<eos>", "<pad>x", "a<bos>"])
def test_a_text_cannot_spell_a_special_token(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)
    assert not set(ids) & set(TOKENIZER.all_special_ids)


def test_the_hash_of_a_tokenizer_survives_saving_and_sees_what_matters(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path / "one")
    again = load_tokenizer(Source("file:///one", str(tmp_path / "one")))
    assert tokenizer_hash(again) == tokenizer_hash(TOKENIZER)
    again(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(again) == tokenizer_hash(TOKENIZER)
    again.add_tokens(["hello"])
    assert tokenizer_hash(again) != tokenizer_hash(TOKENIZER)
    assert (
        again("<eos>", add_special_tokens=False)["input_ids"]
        == TOKENIZER("<eos>", add_special_tokens=False)["input_ids"]
    )


def test_a_warm_start_stops_at_the_target_and_samples_at_the_reported_accuracy(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    context = ComponentContext(model_uri=f"{SMALL}&accuracy=0.4&steps=2000", cache=tmp_path, demonstrations=Letters())
    source = ensure_model(context)
    record = json.loads((Path(source.name) / "warmstart.json").read_text())
    assert record["reached"]
    assert 0.4 <= record["accuracy"] < 0.95
    model = load_model(source, dtype=torch.float32, device="cpu")
    demonstrations = Letters().demonstrate(123, 100)
    sampler = EagerSampler(model, [TOKENIZER.eos_token_id], TOKENIZER.pad_token_id)
    prompts = [TOKENIZER(demonstration.prompt.text)["input_ids"] for demonstration in demonstrations]
    sampled = sampler.sample(prompts, 4, SamplingParams(8), 0)
    right = [
        completion.stopped
        and TOKENIZER.decode(completion.token_ids, skip_special_tokens=True) == demonstration.completion
        for demonstration, group in zip(demonstrations, sampled, strict=True)
        for completion in group
    ]
    assert sum(right) / len(right) == pytest.approx(record["accuracy"], abs=0.12)


def test_a_target_that_cannot_be_reached_ends_at_the_bound_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = ComponentContext(model_uri=f"{SMALL}&accuracy=0.9&steps=50", cache=tmp_path, demonstrations=Unlearnable())
    record = json.loads((Path(ensure_model(context).name) / "warmstart.json").read_text())
    assert record["steps"] == 50
    assert not record["reached"]
    assert "NOT reached" in caplog.text


def test_the_same_options_and_demonstrations_give_the_same_weights_whatever_happened_before() -> None:
    options = BuiltinOptions(layers=1, hidden=32, steps=25, accuracy=0.99)
    made = []
    for _ in range(2):
        torch.rand(13)
        model = build_model(options, vocabulary=len(TOKENIZER), pad=0, bos=1, eos=2)
        warm_start(model, TOKENIZER, Letters(), options)
        made.append(model.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_a_warm_start_uses_one_thread_so_that_its_sums_do_not_depend_on_the_machine(tmp_path: Path) -> None:
    used: list[int] = []

    class Watching(Letters):
        def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
            used.append(torch.get_num_threads())
            return super().demonstrate(seed, count)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        address = f"{SMALL}&accuracy=0.9&steps=1"
        ensure_model(ComponentContext(model_uri=address, cache=tmp_path, demonstrations=Watching()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(used) == {1}


def test_the_cache_has_one_folder_for_everything_that_went_into_a_model(tmp_path: Path) -> None:
    def folder(address: str, demonstrations: Letters | None = None) -> str:
        return ensure_model(ComponentContext(model_uri=address, cache=tmp_path, demonstrations=demonstrations)).name

    plain = folder(f"{SMALL}&accuracy=0")
    assert folder(f"{SMALL}&accuracy=0") == plain
    stamp = (Path(plain) / "config.json").stat().st_mtime_ns
    others = {folder(f"{SMALL}&accuracy=0&seed=1"), folder("builtin://tiny?layers=2&hidden=32&accuracy=0")}
    others |= {
        folder(f"{SMALL}&accuracy=0.9&steps=1", Letters()),
        folder(f"{SMALL}&accuracy=0.9&steps=1", Unlearnable()),
    }
    assert len(others | {plain}) == 5
    assert (Path(plain) / "config.json").stat().st_mtime_ns == stamp
    assert not [path for path in (tmp_path / "models").iterdir() if path.name.startswith(".")]


def test_a_folder_without_a_language_model_is_refused_when_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InvalidManifest, match=r"spec\.model\.uri"):
        load_model(Source("file:///x", str(tmp_path)), dtype=torch.float32, device="cpu")
    (tmp_path / "config.json").write_text("{" + string.ascii_letters)
    with pytest.raises(InvalidManifest, match="file:///x"):
        load_tokenizer(Source("file:///x", str(tmp_path)))
