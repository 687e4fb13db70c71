"""The hash of weights: equal for equal weights, another one for any change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from toys import ToyTrainer

from swarmgame.runtime.weights import sums, weights_hash


class Holding(ToyTrainer):
    """A trainer that names these tensors."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        super().__init__()
        self._tensors = tensors

    def weights(self) -> Mapping[str, Any]:
        return self._tensors


def hash_of(**tensors: torch.Tensor) -> str:
    return weights_hash(Holding(tensors))


def test_equal_weights_have_equal_hashes_whatever_their_layout() -> None:
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    assert hash_of(w=values) == hash_of(w=values.clone()) == hash_of(w=values.t().contiguous().t())
    assert len(hash_of(w=values)) == 32


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool])
def test_every_single_element_counts(kind: torch.dtype) -> None:
    values = torch.zeros(64).to(kind)
    found = {hash_of(w=values)}
    for at in range(64):
        changed = values.clone()
        changed[at] = 1
        found.add(hash_of(w=changed))
    assert len(found) == 65


def test_order_shape_type_and_name_count() -> None:
    values = torch.arange(6, dtype=torch.float32)
    others = [
        hash_of(w=values.flip(0)),
        hash_of(w=values[[1, 0, 2, 3, 4, 5]]),
        hash_of(w=values.view(2, 3)),
        hash_of(w=values.double()),
        hash_of(v=values),
        hash_of(w=values[:3], x=values[3:]),
        hash_of(w=-values),
    ]
    assert len({hash_of(w=values), *others}) == len(others) + 1


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_the_sums_of_an_accelerator_depend_on_every_element_and_its_place(kind: torch.dtype) -> None:
    values = torch.zeros(64).to(kind)
    found = {sums(values)}
    for at in range(64):
        changed = values.clone()
        changed[at] = 1
        found.add(sums(changed))
    assert len(found) == 65
    assert sums(torch.tensor([1.0, 2.0])) != sums(torch.tensor([2.0, 1.0]))


def test_the_sums_of_a_tensor_longer_than_a_chunk_are_those_of_the_complete_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.arange(100, dtype=torch.float32)
    before = sums(values)
    monkeypatch.setattr("swarmgame.runtime.weights._CHUNK", 7)
    assert sums(values) == before


def test_a_trainer_that_names_no_weights_is_hashed_by_its_state() -> None:
    one, other = ToyTrainer(), ToyTrainer()
    assert weights_hash(one) == weights_hash(other)
    other.table["question"] = [0.0, 0.0, 0.0, 1e-9]
    assert weights_hash(one) != weights_hash(other)
