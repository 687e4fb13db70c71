"""Tiny GGUF files, and packages that have them: a folder on the path with a list of files, as pip writes it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "Ċ Ċ", "a b", "Ġ ab"]
HIDDEN, LAYERS, HEADS, KEY_HEADS, MLP = 32, 2, 4, 2, 64


def is_installed(package: str) -> bool:
    """Return whether a package is installed; imports nothing of it."""
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def write_gguf(path: Path, *, split: str = "smollm", architecture: str = "llama", seed: int = 0) -> None:
    """Write a Llama with random weights and a byte-level tokenizer, whose merges show how the text was split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet, *("".join(merge.split()) for merge in MERGES)]
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(seed)
    keys = HIDDEN // HEADS * KEY_HEADS
    shapes = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (HIDDEN,),
                "attn_q": (HIDDEN, HIDDEN),
                "attn_k": (keys, HIDDEN),
                "attn_v": (keys, HIDDEN),
                "attn_output": (HIDDEN, HIDDEN),
                "ffn_norm": (HIDDEN,),
                "ffn_gate": (MLP, HIDDEN),
                "ffn_up": (MLP, HIDDEN),
                "ffn_down": (HIDDEN, MLP),
            }.items()
        }
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(scale=0.3, size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def install_package(folder: Path, files: Mapping[str, bytes | Path], *, name: str = "tiny-weights") -> None:
    """Install a package without code.

    Args:
        folder: on `sys.path`.
        files: by path in the package: content, or a file to link to.
    """
    module = name.replace("-", "_")
    for path, content in files.items():
        place = folder / module / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            place.hardlink_to(content)
        else:
            place.write_bytes(content)
    information = folder / f"{module}-1.2.3.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    (information / "RECORD").write_text("".join(f"{module}/{path},,\n" for path in files))
