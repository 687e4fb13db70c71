"""A column: numbers in the bytes they came in.

Of what others say, log-probabilities are read where they are trained on and nowhere else, and ids once, to compare them
with the words. Kept as Python objects they take ten times the memory, and to make them was half of a peer's work in an
exchange of 256 KiB; a column makes them when somebody asks. Invariant: a column equals, hashes, prints and copies as
the tuple of its numbers would, and cannot be changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", int, float)


class Column(Sequence[Number], Generic[Number]):
    """An immutable sequence of Python numbers over memory that holds them as a machine does.

    Args:
        numbers: of one dimension, integers or floats; not copied. Read-only, as every array over `bytes` is.
    """

    __slots__ = ("_numbers",)

    def __init__(self, numbers: NDArray[Any]) -> None:
        if numbers.flags.writeable:
            raise ValueError("a column's numbers could be changed")
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
        return tuple(self) == tuple(other) if isinstance(other, tuple | Column) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._numbers.tolist(),)
