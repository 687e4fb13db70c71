"""The failed calls of an author's reward function: counted by kind, the first of each kind kept for the author.

A failed call scores 0, which an author cannot tell from a wrong answer. The kinds are shown by the observers of the
loop; a round in which every call failed ends the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from swarmgame.errors import BadGame
from swarmgame.game.reward_checks import ScoringFailure
from swarmgame.user_code import CodeError

MAX_KINDS = 32
"""Further kinds are counted together: an exception's class and line may depend on the answer."""
_OTHER = CodeError("Other errors", "")
CURES = {
    "timeout": "Make the function faster, or raise spec.game.rewards.with.deadlineSeconds",
    "memory": "Raise spec.game.rewards.with.memoryMebibytes",
    "forbidden": "The sandbox has no network and starts no processes: do without, or set trusted: true for a function "
    "that never evaluates an answer",
    "killed": "The function crashed or ended its process; call it outside of a game to see why",
    "ended": "The function ended its process; it must return a number",
    "not a number": "Return a finite number for every answer, 0.0 for one that cannot be scored",
    "PermissionError": "The sandbox has no files: read them when the module is imported, or set trusted: true for a "
    "function that never evaluates an answer",
}
"""Kind of failure → what the author can do."""
DEFAULT_CURE = "Correct the function; where an answer may cause this, catch it and return 0.0"


@dataclass
class _Round:
    succeeded: int = 0
    failed: int = 0
    own_failed: int = 0
    not_run: int = 0
    kinds: dict[tuple[str, str], int] = field(default_factory=dict)


class FailureLog:
    """Counts the calls of one function.

    Args:
        function: its name, for messages.
    """

    def __init__(self, function: str) -> None:
        self._function = function
        self._kinds: dict[tuple[str, str], ScoringFailure] = {}
        self._round = _Round()
        self._has_succeeded = False
        self._suspected = False

    @property
    def failures(self) -> Sequence[ScoringFailure]:
        """Every kind so far, in the order in which they came."""
        return tuple(self._kinds.values())

    def add_success(self) -> None:
        """Count a call that gave a score, in this round or in an earlier one that the round uses again."""
        self._round.succeeded += 1

    def add_not_run(self) -> None:
        """Count a call that the sandbox did not make, because calls before it broke a limit."""
        self._round.not_run += 1

    def add_failure(self, error: CodeError, breach: str = "", *, own: bool = True) -> None:
        """Count a failed call.

        Args:
            breach: kind of the limit that it broke, if any; selects the cure.
            own: whether the answer is this peer's own. Answers of other peers alone never end a run.
        """
        key = (error.kind, error.where)
        if key not in self._kinds and len(self._kinds) >= MAX_KINDS:
            error, key = _OTHER, (_OTHER.kind, "")
        cure = CURES.get(breach) or CURES.get(error.kind) or DEFAULT_CURE
        found = self._kinds.setdefault(key, ScoringFailure(error, 0, cure))
        self._kinds[key] = replace(found, count=found.count + 1)
        self._round.failed += 1
        self._round.own_failed += own
        self._round.kinds[key] = self._round.kinds.get(key, 0) + 1

    def end_round(self, number: int) -> None:
        """Begin to count anew.

        Raises:
            BadGame: every call of the round failed. Where some were not made, and the function has worked before, two
                rounds in a row are needed: the answers, not the function, may be what takes too long.
        """
        ended, self._round = self._round, _Round()
        proven = self._has_succeeded
        self._has_succeeded |= ended.succeeded > 0
        if ended.succeeded or not ended.own_failed:
            self._suspected = self._suspected and not ended.succeeded
            return
        if proven and ended.not_run and not self._suspected:
            self._suspected = True
            return
        key, count = max(ended.kinds.items(), key=lambda item: item[1])
        raise BadGame(self._sentence(number, ended, self._kinds[key], count))

    def _sentence(self, number: int, ended: _Round, failure: ScoringFailure, count: int) -> str:
        calls = f"all {ended.failed} calls" if ended.failed > 1 else "the only call"
        lines = [
            f"the reward function {self._function} cannot be used: {calls} in round {number} failed, so nothing can be "
            "learned"
        ]
        if ended.not_run:
            lines[0] += f" ({ended.not_run} more were not made after so many failures)"
        often = f"{count} times " if len(ended.kinds) > 1 else ""
        lines.append(f"{often}{failure.error}")
        if failure.error.trace:
            lines.append(failure.error.trace)
        lines.append(f"{failure.cure}; then run the same command again")
        return "\n".join(lines)
