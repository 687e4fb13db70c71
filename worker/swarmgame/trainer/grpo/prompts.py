"""The ids of prompts: through the chat template where there is one, at most as many as the model has room for.

Mistakes that would show in no number are errors or counted here: a template that refuses the prompt's messages, ids for
which the model has no embedding, an end of sequence behind the prompt, a prompt that loses its beginning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import Notice
from swarmgame.game.state import Message, Prompt
from swarmgame.models.limits import SMALLEST_PROMPT, Context
from swarmgame.models.uri import PATH
from swarmgame.trainer.grpo.config import GRPOConfig


def longest_prompt(context: Context, config: GRPOConfig) -> int:
    """Return how many ids of a prompt fit beside a completion.

    Raises:
        InvalidManifest: too few are left for a question.
    """
    if context.tokens is None:
        return config.max_prompt_tokens
    room = context.tokens - config.max_new_tokens
    if room < SMALLEST_PROMPT:
        most = max(1, context.tokens - SMALLEST_PROMPT)
        why = f" ({context.reason})" if context.reason else ""
        expected = (
            f"at most {most}: the model has room for {context.tokens} tokens of prompt and completion together{why}, "
            f"and a prompt needs at least {SMALLEST_PROMPT}"
        )
        raise InvalidManifest("spec.game.trainer.with.maxNewTokens", config.max_new_tokens, expected)
    return min(config.max_prompt_tokens, room)


class PromptEncoder:
    """Encodes prompts, and counts those that are cut.

    Args:
        uri: of the model, for messages.
        longest: most ids of a prompt; a longer one loses its beginning.
        embeddings: rows of the model's embedding.
        eos_token_ids: removed from the end of a prompt: a completion behind one would answer a finished text.
        filler: the only id of a prompt that would be empty.
        variables: of the chat template, such as `enable_thinking`.
    """

    def __init__(
        self,
        tokenizer: Any,
        uri: str,
        *,
        longest: int,
        embeddings: int,
        eos_token_ids: Sequence[int],
        filler: int,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer, self._uri, self._longest, self._embeddings = tokenizer, uri, longest, embeddings
        self._eos = frozenset(eos_token_ids)
        self._filler = filler
        self._cut = self._length_of_first_cut = self._without_embedding = 0
        self._variables = dict(variables or {})

    def check(self) -> None:
        """Check that ids of texts have an embedding, and that the template takes a message of the user.

        Raises:
            InvalidManifest: as for a prompt.
        """
        if len(self._tokenizer) > self._embeddings:
            special = set(self._tokenizer.all_special_ids)
            ids = self._tokenizer.get_vocab().values()
            beyond = [each for each in ids if each >= self._embeddings and each not in special]
            if beyond:
                expected = (
                    f"a model whose tokenizer fits: {len(beyond)} of the tokenizer's ids, up to {max(beyond)}, have no "
                    f"embedding, since the model has {self._embeddings} of them"
                )
                raise InvalidManifest(PATH, self._uri, expected)
        self._check_variables()
        missing = [each for each in self._read(Prompt("", (Message("user", "1 + 1"),))) if each >= self._embeddings]
        if missing:
            token = self._tokenizer.convert_ids_to_tokens(missing[0])
            expected = (
                f"a model whose tokenizer fits: every prompt has the id {missing[0]} ({token!r}), and the model has "
                f"embeddings for ids below {self._embeddings} only"
            )
            raise InvalidManifest(PATH, self._uri, expected)

    def _check_variables(self) -> None:
        if not self._variables:
            return
        path, template = "spec.game.trainer.with.chatTemplateKwargs", getattr(self._tokenizer, "chat_template", None)
        if not template:
            raise InvalidManifest(path, self._variables, f"nothing: the model {self._uri} has no chat template")
        from transformers.utils.chat_template_utils import _get_template_variables

        known = _get_template_variables(self._tokenizer.get_chat_template())
        for name, value in self._variables.items():
            if name not in known:
                own = ", ".join(sorted(known - {"messages", "raise_exception", "strftime_now"}))
                expected = f"a variable that the model's chat template reads: {own or 'it reads none'}"
                raise InvalidManifest(f"{path}.{name}", value, expected)

    def __call__(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the ids of a prompt, never empty.

        Raises:
            InvalidManifest: the model's chat template does not take the prompt's messages.
        """
        read = self._read(prompt)
        ids = [each for each in read if each < self._embeddings]
        self._without_embedding += len(ids) < len(read)
        if len(ids) > self._longest:
            self._length_of_first_cut = self._length_of_first_cut or len(ids)
            self._cut += 1
        return tuple(ids[-self._longest :]) or (self._filler,)

    def notices(self) -> Sequence[Notice]:
        """Return notices of the prompts that were cut, if there were any."""
        found = []
        if self._cut:
            text = (
                f"prompts lose their beginning: the first such had {self._length_of_first_cut} tokens, and there is "
                f"room for {self._longest}"
            )
            found.append(Notice("prompts-cut", text, self._cut))
        if self._without_embedding:
            # Texts of other peers may spell a special token.
            text = "prompts lose ids for which the model has no embedding"
            found.append(Notice("prompts-cut", text, self._without_embedding))
        return found

    def _read(self, prompt: Prompt) -> list[int]:
        if not getattr(self._tokenizer, "chat_template", None):
            # Some tokenizers of base models end every text; a template that does means it.
            ids = list(self._tokenizer(prompt.text, split_special_tokens=True)["input_ids"])
            while len(ids) > 1 and ids[-1] in self._eos:
                ids.pop()
            return ids
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        try:
            return chat_ids(self._tokenizer, messages, self._variables)
        except Exception as error:
            roles = ", ".join(dict.fromkeys(message.role for message in prompt.messages))
            expected = (
                f"a model whose chat template takes messages of the roles {roles}: {_first_line(error)} (some "
                "templates take no system message: leave out answerFormat, or the system prompt of the data)"
            )
            raise InvalidManifest(PATH, self._uri, expected) from error


def chat_ids(tokenizer: Any, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]) -> list[int]:
    """Return the ids of messages through the chat template, up to where the next turn begins. Contents never become
    special tokens, whatever they spell.
    """
    try:
        return _applied(tokenizer, messages, variables)
    except ValueError as error:
        if not str(error).startswith("Can't sanitize"):
            raise
    # The tokenizer's own merges make the token out of plain text: a space in it keeps them apart.
    spelled = re.compile("|".join(map(re.escape, tokenizer.added_tokens_encoder)))
    parted = [
        {**each, "content": spelled.sub(lambda found: f"{found[0][0]} {found[0][1:]}", each["content"])}
        for each in messages
    ]
    return _applied(tokenizer, parted, variables)


def _applied(tokenizer: Any, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]) -> list[int]:
    return list(
        tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
            **variables,
        )
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
