"""A round of generation, exchange, rewards and training: GenRL 0.3.0 against SwarmGame, with the same model and work.

`swarm`: 4 peers, each a process of one thread, over each side's hivemind backend: 8 questions x 8 completions x 32
tokens, one stage. `multistage`: GenRL's multistage_math, one peer, one thread, no network: 4 questions x 4 generations
x 64 tokens x 3 stages. Both arms start from the same weights, use the same questions, sample the same number of tokens
and train on all of them once; the reward is a hash of the text. Both run with their defaults (GenRL: minibatches of 2,
gradient checkpointing). A round's seconds are its slowest peer's; `processor` is that peer's processor time, which
other work on the machine hardly changes. Claims: both at least 5 times as fast as GenRL.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from channel import Crew
from genrl.environment import environment
from harness import claim, machine, publish, result, summary
from work import MULTISTAGE, SWARM, Game, Work

HERE = Path(__file__).parent
ARMS = ("genrl", "swarmgame")
PARTS = ("round", "generate", "exchange", "rewards", "train", "processor")
START_SECONDS = 180.0
ROUND_SECONDS = 240.0
LEAST_TOKENS = 0.98
"""The minimum share of sampled tokens: GenRL counts them from text, which misses sampled padding tokens."""


class Incomplete(Exception):
    """A round did not do its work, so its seconds are not valid."""


@dataclass
class ArmTimes:
    """The rounds of one arm without warm-ups: for each part, the slowest peer's seconds in each round."""

    rounds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    updates: int = 0

    def add(self, answers: Sequence[dict[str, Any]]) -> None:
        for part in PARTS:
            self.rounds[part].append(max(answer["seconds"].get(part, 0.0) for answer in answers))
        self.updates = answers[0]["updates"]

    def figures(self) -> dict[str, Any]:
        parts = {part: round(statistics.median(seconds), 4) for part, seconds in self.rounds.items() if part != "round"}
        return {"seconds": summary(self.rounds["round"]), "parts": parts, "updates_a_round": self.updates}


def measure(game: Game, arms: Sequence[str], folder: Path, *, warmups: int, rounds: int) -> dict[str, Any]:
    """Run rounds of the arms in turn, A B A B …, and return arm → figures. The processes of the other arm wait.

    Raises:
        Incomplete: a peer hung, crashed, received too few contributions, sampled too few tokens or did not train.
    """
    work = folder / game.name
    Work.make(work, game)
    if "genrl" in arms and game.stages > 1:
        (work / "prompts.json").write_text(genrl_prompts(), encoding="utf-8")
    times = {arm: ArmTimes() for arm in arms}
    with ExitStack() as stack:
        crews = {arm: stack.enter_context(_crew(game, arm, folder)) for arm in arms}
        for arm, crew in crews.items():
            crew.assemble(_command(arm, work), game.peers, START_SECONDS)
        for number in range(warmups + rounds):
            for arm, crew in crews.items():
                answers = [_checked(game, arm, answer) for answer in crew.request({"round": number}, ROUND_SECONDS)]
                if number >= warmups:
                    times[arm].add(answers)
                    print(f"{game.name}: {arm} {times[arm].rounds['round'][-1]:.3f} s", file=sys.stderr, flush=True)
    return {arm: samples.figures() for arm, samples in times.items()}


def _crew(game: Game, arm: str, folder: Path) -> Crew:
    variables = {
        "PYTHONPATH": str(HERE),
        "HIVEMIND_WORLD_SIZE": str(game.peers),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return Crew(folder / f"{game.name}-{arm}", {**variables, "TOKENIZERS_PARALLELISM": "false"})


def _command(arm: str, work: Path) -> list[str]:
    python = str(environment()) if arm == "genrl" else sys.executable
    return [python, str(HERE / ("genrl" if arm == "genrl" else "swarm") / "round_peer.py"), str(work)]


def _checked(game: Game, arm: str, answer: dict[str, Any] | None) -> dict[str, Any]:
    if answer is None:
        raise Incomplete(f"{arm}, {game.name}: a peer did not finish its round within {ROUND_SECONDS:.0f} s")
    if answer["received"] != (game.peers - 1) * game.stages:
        raise Incomplete(f"{arm}, {game.name}: a peer received {answer['received']} contributions")
    if answer["tokens"] < LEAST_TOKENS * game.tokens_a_round or not answer["updates"]:
        raise Incomplete(
            f"{arm}, {game.name}: a peer sampled {answer['tokens']} tokens and made {answer['updates']} updates"
        )
    return answer


def genrl_prompts() -> str:
    """Return the system prompts of GenRL's three stages as JSON, read from its package."""
    code = (
        "import json; from genrl.examples.multistage_math import data; "
        "print(json.dumps([getattr(data, f'STAGE{stage}_SYSTEM_PROMPT') for stage in range(3)]))"
    )
    done = subprocess.run(
        [str(environment()), "-c", code], capture_output=True, text=True, timeout=START_SECONDS, check=True
    )
    prompts: list[str] = json.loads(done.stdout.splitlines()[-1])
    return json.dumps(prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--smoke", action="store_true", help="ours alone, one peer, three stages of a few tokens; nothing is written"
    )
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds of each arm")
    parser.add_argument("--warmups", type=int, default=2, help="rounds before those")
    parser.add_argument(
        "--game", choices=[SWARM.name, MULTISTAGE.name], help="only this one; the other's last result is kept"
    )
    options = parser.parse_args()
    began = machine()
    with tempfile.TemporaryDirectory(prefix="round-") as name:
        folder = Path(name)
        if options.smoke:
            small = replace(MULTISTAGE, questions=2, generations=2, tokens=4)
            games = {"multistage": measure(small, ["swarmgame"], folder, warmups=0, rounds=1)}
            publish("round_vs_genrl", {"claims": [], "games": games}, began=began, smoke=True)
            return
        games = dict((result("round_vs_genrl") or {}).get("games", {}))
        for game in (SWARM, MULTISTAGE):
            if options.game in (None, game.name):
                games[game.name] = {
                    **measure(game, ARMS, folder, warmups=options.warmups, rounds=options.rounds),
                    "machine": machine(),
                }
    claims = [
        claim(f"{name} round: GenRL's seconds / ours", _ratio(figures), at_least=5) for name, figures in games.items()
    ]
    publish("round_vs_genrl", {"claims": claims, "games": games}, began=began)


def _ratio(figures: Mapping[str, Any]) -> float:
    ratio: float = figures["genrl"]["seconds"]["median"] / figures["swarmgame"]["seconds"]["median"]
    return ratio


if __name__ == "__main__":
    main()
