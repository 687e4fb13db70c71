"""Tokenizers: the character-level one of the builtin model, and the hash by which peers compare tokenizers.

Invariant: two tokenizers with one hash give the same ids for the same text, so ids may be exchanged instead of text.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one id a character: newline and printable ASCII, anything else UNK. A text begins with
    BOS. It has no chat template and no files.
    """
    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, UNK, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        # Untrusted text that spells a special token must not become one.
        split_special_tokens=True,
    )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return sixteen hexadecimal digits over vocabulary, merges, normaliser, added tokens and ids of special tokens.

    Settings of truncation and padding are left out, because calls change them; so is the chat template, which does not
    affect the ids of a text.
    """
    description: dict[str, Any]
    if getattr(tokenizer, "is_fast", False):
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        for changing in ("truncation", "padding"):
            description.pop(changing, None)
    else:
        description = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    description["eos"] = tokenizer.eos_token_id
    text = json.dumps(description, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8, person=b"swarmgame-tok").hexdigest()
