"""Tokenizers: the character-level one of the builtin model, and the hash by which peers know that their ids mean the
same.

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
    """One id a character: newline and printable ASCII; whatever else becomes UNK. A text begins with BOS. No chat
    template, no files.
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
        # A stranger's text that spells a special token must not become one.
        split_special_tokens=True,
    )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Sixteen hexadecimal digits over vocabulary, merges, normaliser, added tokens and the ids of the special ones.

    Truncation and padding settings, which calls change, do not count; neither does the chat template, which makes text
    and not ids.
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
