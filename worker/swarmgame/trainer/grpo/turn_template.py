"""The ids that stand between two turns of the policy: the observation, as the chat template puts it.

Ids that were sampled are never tokenised again. What follows them is what the template writes behind a turn of the
assistant: the end of the turn, the observation's message, and the header of the next turn. That is right for a template
that only appends, so that the policy reads in a later turn what it read and wrote before; others are refused by name.
Without a template the observation stands between two line breaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swarmgame.errors import InvalidManifest
from swarmgame.models.uri import PATH
from swarmgame.trainer.grpo.prompts import chat_ids

_ANSWERS = "A", "B"
"""Two turns of the assistant that share no ids, so that what follows both is what follows any."""
_QUESTION = {"role": "user", "content": "1 + 1"}


class TurnTemplate:
    """Makes the ids of observations.

    Args:
        uri: of the model, for messages.
        role: of an observation.
        ends: ids with which the policy ends a turn.
        variables: of the chat template.

    Raises:
        InvalidManifest: the model's template does not take such turns.
    """

    def __init__(
        self,
        tokenizer: Any,
        uri: str,
        *,
        role: str,
        ends: Sequence[int],
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer, self._uri, self._role = tokenizer, uri, role
        self._ends = frozenset(ends)
        self._variables = dict(variables or {})
        self._has_template = bool(getattr(tokenizer, "chat_template", None))
        if self._has_template:
            self._check()

    def __call__(self, observation: str, *, last: int | None, longest: int) -> tuple[int, ...]:
        """Return the ids of an observation.

        Args:
            last: last id of the policy's turn; where that ends the turn, the end is not written again.
            longest: most ids of the observation itself; its end is cut off.
        """
        text = self._cut(observation, longest)
        if not self._has_template:
            return tuple(self._tokenizer(f"\n{text}\n", add_special_tokens=False, split_special_tokens=True).input_ids)
        between = self._between(text)
        if last in self._ends and between and between[0] in self._ends:
            between = between[1:]
        return between

    def _cut(self, text: str, longest: int) -> str:
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        if len(found.input_ids) <= longest:
            return text
        return text[: found.offset_mapping[longest - 1][1]]

    def _between(self, observation: str) -> tuple[int, ...]:
        """Return what the template writes behind a turn of the assistant that an observation answers."""
        first, second = (
            chat_ids(
                self._tokenizer,
                [_QUESTION, {"role": "assistant", "content": answer}, self._message(observation)],
                self._variables,
            )
            for answer in _ANSWERS
        )
        same = 0
        while same < min(len(first), len(second)) and first[-1 - same] == second[-1 - same]:
            same += 1
        return tuple(first[len(first) - same :])

    def _message(self, observation: str) -> dict[str, str]:
        return {"role": self._role, "content": observation}

    def _check(self) -> None:
        answer = {"role": "assistant", "content": _ANSWERS[0]}
        observation = self._message("OBSERVATION")
        try:
            asked = self._text([_QUESTION])
            answered = self._text([_QUESTION, answer, observation])
            again = self._text([_QUESTION, answer, observation, answer, observation])
        except Exception as error:
            raise self._refused(f"takes a message of the role {self._role} behind one of the assistant") from error
        # The header of the next turn, `asked` ends with it, must be what every later turn begins with.
        if not answered.startswith(asked + _ANSWERS[0]) or not again.startswith(answered + _ANSWERS[0]):
            raise self._refused(
                "only appends: it writes earlier turns in another way when later ones follow, so the policy would be "
                "trained on what it never read"
            )
        if "OBSERVATION" not in answered:
            raise self._refused(f"writes messages of the role {self._role}")

    def _refused(self, what: str) -> InvalidManifest:
        expected = (
            f"a model whose chat template {what} (spec.game.environment needs it; for templates that think, try "
            "spec.game.trainer.with.chatTemplateKwargs)"
        )
        return InvalidManifest(PATH, self._uri, expected)

    def _text(self, messages: list[dict[str, str]]) -> str:
        found = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **self._variables
        )
        return str(found)
