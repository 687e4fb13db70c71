"""PackedNumbers: an immutable sequence of numbers over the bytes of a received message.

The log-probabilities of a remote rollout are read only in training, its ids once, to compare them with the text. As
Python objects they take ten times the memory, and making them was half of a peer's work in an exchange of 256 KiB;
here they are made on access. A plain numpy view does not do: it compares element by element, cannot be hashed, and
yields numpy scalars, which JSON, msgpack and tokenizers refuse. Invariant: an instance equals, hashes, prints, copies
and pickles as the tuple of its numbers, and cannot be changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", int, float)


class PackedNumbers(Sequence[Number], Generic[Number]):
    """An immutable sequence of Python numbers, stored as a numpy array.

    Args:
        numbers: read-only, of one dimension, integers or floats; not copied.
    """

    __slots__ = ("_numbers",)

    def __init__(self, numbers: NDArray[Any]) -> None:
        if numbers.flags.writeable:
            raise ValueError("the numbers must be read-only")
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Number]:
        return iter(self._numbers.tolist())

    @overload
    def __getitem__(self, index: int) -> Number: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Number, ...]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return tuple(self._numbers[index].tolist()) if isinstance(index, slice) else self._numbers.item(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._numbers, dtype=dtype, copy=copy)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, tuple | PackedNumbers) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._numbers.tolist(),)
