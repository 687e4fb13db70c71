"""Attacks by peers that nobody trusts: what each costs four honest peers, with the defence and without.

The exchange runs in memory and in virtual time: a round takes one second, and a stage waits for 120 seconds at most, so
that a pace is exact and repeats. The pace is that of the slowest honest peer over 60 virtual seconds, as a share of the
pace without an attack. Hostile answers are scored in the real sandbox, and counted where one of them is executed or
changes a score. Floods are sent to live peers (`flood_rows.py`). Without the defence means: the same code with that one
defence taken out, as in `make test-attacks`, whose helpers this script uses. Run as `python benchmarks/attacks.py`;
`--smoke` tries each kind of attack once, floods only with the defence, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgpack
from harness import claim, machine, publish

sys.path[:0] = [str(Path(__file__).parents[1] / "worker" / "tests" / "support")]

from flood_rows import bomb_row, flood_rows  # noqa: E402
from paced_swarms import PacedSwarm  # noqa: E402
from swarms import RUN, RoguePeer  # noqa: E402
from weakened_sandbox import weakened  # noqa: E402

from swarmgame.game.protocol import Exchange, Member  # noqa: E402
from swarmgame.sandbox.client import Sandbox  # noqa: E402
from swarmgame.swarm.codec import SHARD_BYTES  # noqa: E402
from swarmgame.swarm.membership import Membership  # noqa: E402
from swarmgame.swarm.messages import make_announcement  # noqa: E402
from swarmgame.swarm.peer_clocks import PeerClocks  # noqa: E402
from swarmgame.swarm.pull import ShardPuller  # noqa: E402
from swarmgame.swarm.stage_times import StageTimes  # noqa: E402

FOUR = ("ann", "bob", "dan", "eve")
SECONDS, SMOKE_SECONDS = 60.0, 3.0
KEYS, SMOKE_KEYS = (3, 300), (3,)
"""How many silent keys there are, an attack each."""
HOUR = 3600.0
ENVIRONMENTS = ("spiral_matrix", "n_queens", "string_insertion", "countdown")
SCORES = "swarmgame.data.environments"

Pace = Callable[[PacedSwarm, float], float]


@contextmanager
def swarm_of(**options: Any) -> Iterator[PacedSwarm]:
    swarm = PacedSwarm(**options)
    try:
        yield swarm
    finally:
        swarm.close()


def pace(attack: Pace, seconds: float, **options: Any) -> float:
    """Return the pace of four peers under an attack, as a share of the pace without one."""
    with swarm_of(**{"anchors": FOUR, **options}) as swarm:
        swarm.add(*FOUR)
        swarm.pass_time(5.5)
        return attack(swarm, seconds) / seconds


def honest_pace(swarm: PacedSwarm, seconds: float) -> float:
    """Return how many rounds the slowest of the four finishes."""
    before = swarm.rounds()[: len(FOUR)]
    swarm.pass_time(seconds)
    return float(min(after - was for was, after in zip(before, swarm.rounds(), strict=False)))


def silent(keys: int, round: int = 0) -> Pace:
    """Return the attack of free keys that greet everybody and then say nothing."""

    def attack(swarm: PacedSwarm, seconds: float) -> float:
        swarm.silent_keys(keys, round=round)
        return honest_pace(swarm, seconds)

    return attack


def claimed(swarm: PacedSwarm, seconds: float) -> float:
    """Four keys claim round 10⁹. Rounds that are skipped do not count."""
    swarm.silent_keys(4, round=10**9)
    found = honest_pace(swarm, seconds)
    return 0.0 if any(peer.skipped for peer in swarm.peers) else found


def withdrawals(swarm: PacedSwarm, seconds: float) -> float:
    """Six strangers earn their place, and withdraw one after another."""
    for number in range(6):
        swarm.add(f"stranger-{number}", plays_until=14 + number)
    return honest_pace(swarm, seconds)


def liars(swarm: PacedSwarm, seconds: float) -> float:
    """Return the rounds in which an honest peer took its clock to be wrong, because two strangers' are."""
    for number in range(2):
        swarm.add(f"liar-{number}", ahead=HOUR)
    swarm.pass_time(seconds)
    errors = [each.clock_error for peer in swarm.peers[: len(FOUR)] for each in peer.collected]
    return float(sum(error is not None and abs(error.seconds) > 5 for error in errors))


def found_by_a_fast_clock(seconds: float) -> float:
    """Return how many of four members a peer finds that joins with a clock an hour fast."""
    with swarm_of() as swarm:
        swarm.add(*FOUR)
        swarm.pass_time(5.5)
        joined = swarm.add("fast", ahead=HOUR)
        return float(len(joined.node.members.confirmed(joined.clock.now())))


def dripping(seconds: float) -> float:
    """Return the pace while a stranger announces large bodies in each round, and sends each for longer than a stage."""
    with swarm_of(anchors=FOUR, exchange=Exchange.PULL) as swarm:
        swarm.hub.body_seconds = lambda holder, receiver: 0.02 if holder in FOUR else 69.0
        swarm.add(*FOUR)
        swarm.pass_time(5.5)
        identity, transport = swarm.hub.identity("rogue"), swarm.hub.transport("rogue")
        rogue = RoguePeer(identity, "rogue", transport, swarm.hub.thread)
        before = swarm.rounds()
        for _ in range(int(seconds)):
            number = swarm.peers[0].number
            swarm.greet(transport, identity, number)
            rows = [[os.urandom(32), SHARD_BYTES, 1, 1, 0.5, 100] for _ in range(4)]
            rogue.bodies.update({row[0]: b"" for row in rows})
            index = msgpack.packb([0, rows])
            made = make_announcement(RUN, "rogue", number, 0, index, 2_000_000_000, identity.sign)
            for peer in swarm.peers:
                rogue.send_announcement(peer.name, made.message)
            swarm.pass_time(1.0)
        return min(after - was for was, after in zip(before, swarm.rounds(), strict=True)) / seconds


def executed(without: list[str], environments: Sequence[str]) -> float:
    """Return how many hostile answers are executed or pay themselves, of all that are scored."""
    frame = b'{"value": 1.0}'
    forged = len(frame).to_bytes(4, "little") + frame
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder) / "marker"
        answers = [
            f"[__import__('os').write(3, {forged!r}), __import__('os')._exit(0)]",
            f"[__import__('os').write(3, {forged!r}), __import__('os')._exit(0), {'-' * 2_954}1]",
            f"open({str(marker)!r}, 'w')",
            f"[open({str(marker)!r}, 'w'), {'-' * 20_000}1]",
            f"__import__('os').system('touch {marker}')",
            "9**9**9**9",
        ]
        box = (weakened(without) if without else Sandbox)(deadline=20.0)
        count = 0
        try:
            for name in environments:
                calls = [[name, {}, 5, answer] for answer in [*answers, "garbage"]]
                *hostile, other = box.call_untrusted(
                    f"{SCORES}:score", calls, deadline=2.0, before=f"{SCORES}:ready", shared=3
                )
                count += sum((result.value or 0.0) >= 1.0 for result in hostile) + marker.exists()
                count += (other.value or 0.0) >= 1.0
                marker.unlink(missing_ok=True)
        finally:
            box.close()
    return float(count)


def rows(seconds: float, *, smoke: bool) -> Iterator[dict[str, Any]]:
    """Yield each attack, with its figures and its bound."""
    believing = [mock.patch.object(Member, name, property(lambda member: member.round)) for name in ("reached", "next")]
    impatient = mock.patch.object(StageTimes, "usual", return_value=None)
    share = "pace, of that without an attack"
    for keys in SMOKE_KEYS if smoke else KEYS:
        yield {
            "attack": f"{keys} keys that are silent",
            "what": share,
            "without": pace(silent(keys), seconds, anchors=None),
            "defended": pace(silent(keys), seconds),
            "at_least": 0.9,
        }
    with believing[0], believing[1]:
        without = pace(claimed, seconds, anchors=None, max_rounds=0)
    yield {
        "attack": "round 10⁹, claimed by 4 keys",
        "what": share,
        "without": without,
        "defended": pace(claimed, seconds),
        "at_least": 0.9,
    }
    with impatient:
        without = pace(withdrawals, seconds)
    yield {
        "attack": "6 strangers earn a place and withdraw in turn",
        "what": share,
        "without": without,
        "defended": pace(withdrawals, seconds),
        "at_least": 2 / 3,
    }
    with mock.patch.object(ShardPuller, "_until", lambda puller, peer, times: times.anchors):
        without = dripping(seconds)
    yield {
        "attack": "large bodies that drip, announced each round",
        "what": share,
        "without": without,
        "defended": dripping(seconds),
        "at_least": 0.8,
    }
    yield from flood_rows(smoke=smoke)
    yield bomb_row()
    yield from clock_rows(seconds)
    environments = ENVIRONMENTS[:1] if smoke else ENVIRONMENTS
    yield {
        "attack": f"{6 * len(environments)} hostile answers to {len(environments)} scorers that evaluate",
        "what": "executed, or paid",
        "without": executed(["guard", "landlock", "seccomp", "dropped privileges"], environments),
        "defended": executed([], environments),
        "at_most": 0,
    }


def clock_rows(seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what wrong clocks do."""
    update = Membership.update
    own_clock = mock.patch.multiple(
        Membership, update=lambda members, heartbeat, now, **known: update(members, heartbeat, now)
    )
    with own_clock, mock.patch.object(PeerClocks, "now_of", lambda clocks, peer, now: now):
        without = found_by_a_fast_clock(seconds)
    yield {
        "attack": "a clock that is an hour fast joins",
        "what": "members found, of 4",
        "without": without,
        "defended": found_by_a_fast_clock(seconds),
        "at_least": 4,
    }
    yield {
        "attack": "2 strangers lie about the time",
        "what": "rounds in which an honest clock counts as wrong",
        "without": None,
        "defended": pace(liars, seconds) * seconds,
        "at_most": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="each kind of attack once, nothing written")
    smoke = parser.parse_args().smoke
    began = machine()
    found = list(rows(SMOKE_SECONDS if smoke else SECONDS, smoke=smoke))
    claims = [
        claim(
            f"{row['attack']}: {row['what']}", row["defended"], at_least=row.get("at_least"), at_most=row.get("at_most")
        )
        for row in found
    ]
    publish("attacks", {"claims": claims, "attacks": found}, began=began, smoke=smoke)


if __name__ == "__main__":
    main()
