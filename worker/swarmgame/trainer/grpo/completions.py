"""Texts of completions: ids to text, and the text of a policy with another tokenizer to ids.

Text of other peers and of rows never becomes a special token. A text that does not come back from its ids is no
completion of this policy: characters that the tokenizer lacks would teach it to say `<unk>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swarmgame.game.components import Notice
from swarmgame.game.state import FinishReason


class CompletionTexts:
    """Decodes and encodes completions, and counts what text cannot hold.

    Args:
        vocabulary: ids are below it.
        eos_token_ids: no text may hold one of them.
        end: the id behind a text that ended; None where the model has none.
        stop: strings that end a completion.
    """

    def __init__(
        self, tokenizer: Any, *, vocabulary: int, eos_token_ids: Sequence[int], end: int | None, stop: Sequence[str]
    ) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._end, self._stop = end, tuple(stop)
        special = (token for token, added in tokenizer.added_tokens_decoder.items() if added.special)
        self._special = frozenset((*tokenizer.all_special_ids, *special, *eos_token_ids))
        self._nameless = frozenset(range(vocabulary)) - frozenset(tokenizer.get_vocab().values())
        self._incomplete = self._irreversible = 0

    def knows(self, token_ids: Sequence[int]) -> bool:
        """Return whether all ids are in the vocabulary."""
        return all(0 <= token < self._vocabulary for token in token_ids)

    def decode(self, token_ids: Sequence[int]) -> str | None:
        """Return the text of ids without special tokens; None when an id is not in the vocabulary."""
        if not self.knows(token_ids):
            return None
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def of_own(self, token_ids: Sequence[int]) -> str:
        """Return the text of a completion of our own, and count it if some of its ids have none: the model has more
        ids than the tokenizer.
        """
        self._incomplete += not self._nameless.isdisjoint(token_ids)
        return self.decode(token_ids) or ""

    def encode(self, text: str, reason: FinishReason) -> tuple[int, ...] | None:
        """Return the ids of a text by a policy with another tokenizer; with EOS only where the text had ended, and not
        by a stop string. None, and counted, where the ids do not give the text back.
        """
        ids = tuple(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        if not self._special.isdisjoint(ids) or self.decode(ids) != text:
            self._irreversible += 1
            return None
        ended = reason is FinishReason.STOP and not any(string in text for string in self._stop)
        return (*ids, self._end) if ended and self._end is not None else ids

    def notices(self) -> Sequence[Notice]:
        """Return notices of texts that lack something, and of texts that were not used, if there were any."""
        found = []
        if self._incomplete:
            text = f"completions hold ids without text: {len(self._nameless)} ids of the model are not the tokenizer's"
            found.append(Notice("text-incomplete", text, self._incomplete))
        if self._irreversible:
            text = "rollouts of peers with another tokenizer are dropped: this tokenizer does not give their text back"
            found.append(Notice("text-not-reversible", text, self._irreversible))
        return found


def end_of_turn(tokenizer: Any, **variables: Any) -> int | None:
    """Return the id with which the chat template ends a turn of the assistant; None without a template, or where its
    turns end with text.

    Base models with a chat template often end turns with a token that is not their EOS (`<|im_end|>`, `<end_of_turn>`):
    without it a completion would never stop.

    Args:
        variables: of the template.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    answer = "the answer of the assistant"
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, **variables)
    except Exception:  # noqa: BLE001 - a template may raise anything; one that refuses every answer has no end of turn
        return None
    _, found, rest = text.rpartition(answer)
    added = tokenizer.added_tokens_decoder
    for token in tokenizer(rest, add_special_tokens=False)["input_ids"] if found else ():
        if token in added:
            return int(token)
        if tokenizer.decode([token]).strip():
            return None
    return None
