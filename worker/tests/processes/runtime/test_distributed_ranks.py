"""Several processes as one peer: bytes and gradients between them, and what happens when one dies."""

from __future__ import annotations

import pytest
from rank_processes import run_ranks

from swarmgame.errors import BadUsage
from swarmgame.game.ranks import OneRank
from swarmgame.runtime.ranks import ranks_from_environment


def test_three_ranks_exchange_bytes_and_add_up_gradients() -> None:
    codes, output = run_ranks(
        """
        rank = ranks.rank
        assert ranks.size == 3
        assert ranks.broadcast(b"from zero" if rank == 0 else None) == b"from zero"
        assert ranks.broadcast(b"" if rank == 0 else None) == b""
        assert ranks.gather(b"x" * rank) == [b"", b"x", b"xx"]
        assert ranks.gather(b"") == [b"", b"", b""]
        big = bytes([rank]) * 5_000_000
        assert [part[:1] for part in ranks.gather(big)] == [bytes([0]), bytes([1]), bytes([2])]
        one, two = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))
        one.grad = torch.full((2, 3), float(rank + 1))
        if rank == 2:
            two.grad = torch.ones(4)
        ranks.sum_gradients([one, two])
        assert torch.equal(one.grad, torch.full((2, 3), 6.0)) and torch.equal(two.grad, torch.ones(4))
        ranks.close(); ranks.close()
        print("fine")
        """,
        3,
    )
    assert codes == [0, 0, 0], output


@pytest.mark.parametrize(
    "call", ["ranks.gather(b'x')", "ranks.broadcast(None)", "ranks.sum_gradients([torch.nn.Parameter(torch.ones(3))])"]
)
def test_a_rank_that_dies_ends_the_other_with_a_temporary_error(call: str) -> None:
    codes, output = run_ranks(
        f"""
        ranks.gather(b"both are here")
        if ranks.rank == 0:
            os._exit(9)
        try:
            {call}
        except Temporary as error:
            assert "lost the other processes" in str(error), error
            os._exit(75)
        """,
        2,
    )
    assert codes == [9, 75], output


def test_ranks_that_train_different_models_end_with_a_message() -> None:
    codes, output = run_ranks(
        """
        parameter = torch.nn.Parameter(torch.ones(3 + ranks.rank))
        try:
            ranks.sum_gradients([parameter])
        except Temporary as error:
            assert "not training the same model" in str(error), error
            os._exit(75)
        """,
        2,
    )
    assert codes == [75, 75], output


def test_a_process_outside_torchrun_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert isinstance(ranks_from_environment(), OneRank)


def test_an_incomplete_environment_is_bad_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(BadUsage, match="RANK"):
        ranks_from_environment()
