"""The `images` data: labelled pictures, for policies that read images.

Reads a folder with a folder per class, a dataset of the hub (`hf://org/name[@revision]`) or saved by `datasets`, and
scikit-learn's 8×8 digits (`sklearn://digits`), which need no download. A question has no text: its payload is a
float32 array, channels × height × width, in [0, 1], its answer the number of the class. Invariant: payloads are
read-only, and equal byte by byte on every peer with the same data.
"""

from __future__ import annotations

import logging
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
from numpy.typing import NDArray
from pydantic import Field

from swarmgame.data.cells import CellProblem, kind_of_cell, text_of_cell
from swarmgame.data.dataset import HUB, PATH, FiniteConfig, FiniteData, existing, load_from_hub
from swarmgame.errors import BadData, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Prompt, Question, QuestionRef

_log = logging.getLogger("swarmgame.data")

DIGITS = "sklearn://digits"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")

Image = NDArray[numpy.float32]


class ImageConfig(FiniteConfig):
    """Which pictures, and how large."""

    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Height and width to which every picture is scaled; required where pictures differ in size."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; as in the first picture when not given."""
    image: str = "image"
    """Column of the picture in a dataset."""
    label: str = "label"
    """Column of the label in a dataset."""
    max_rows: Annotated[int, Field(ge=1)] = 1_000_000
    """Most pictures that are read: the first ones, or as many of each class where they come class by class."""


class ImageData(FiniteData):
    """See the module. `classes` are the names of the labels, `shape` is the shape of every payload."""

    Config = ImageConfig
    config: ImageConfig

    def __init__(self, config: ImageConfig, context: ComponentContext | None = None) -> None:
        context = context or ComponentContext()
        source = _read(config, context)
        chosen = _chosen(config.source, source.labels, config.max_rows)
        self.classes = source.classes
        self._labels = [source.labels[row] for row in chosen]
        self._images: list[Image] = []
        for image in source.read(chosen):
            if self._images and image.shape != self._images[0].shape:
                raise InvalidManifest(
                    f"{PATH}.size", config.size, f"a size: pictures are {self._images[0].shape} and {image.shape}"
                )
            image.setflags(write=False)
            self._images.append(image)
        if not self._images:
            raise InvalidManifest(f"{PATH}.source", config.source, "data with at least one picture")
        super().__init__(
            config,
            context,
            (image.tobytes() + bytes([label % 256]) for image, label in zip(self._images, self._labels, strict=True)),
            asked=(image.tobytes() for image in self._images),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return tuple(self._images[0].shape)

    def question(self, reference: QuestionRef) -> Question:
        label = self._labels[reference.index]
        return Question(
            reference, answer=str(label), metadata={"class": self.classes[label]}, payload=self._images[reference.index]
        )

    def prompt(self, question: Question) -> Prompt:
        return Prompt(question_id=question.id, payload=question.payload)


@dataclass(frozen=True)
class _Source:
    """Pictures that can be read, in the same order on every peer.

    Args:
        classes: names of the labels.
        labels: one a picture.
        read: yields the pictures with these numbers, which are in order.
    """

    classes: Sequence[str]
    labels: Sequence[int]
    read: Callable[[Sequence[int]], Iterator[Image]]


def _read(config: ImageConfig, context: ComponentContext) -> _Source:
    if config.source == DIGITS:
        return _digits(config)
    if config.source.startswith(HUB):
        return _from_dataset(load_from_hub(config, context), config)
    folder = existing(config.source, context.folder)
    if (folder / "dataset_info.json").exists():
        return _from_dataset(load_from_hub(config, context), config)
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not classes:
        raise InvalidManifest(
            f"{PATH}.source", config.source, f"a folder with a folder per class, {HUB}org/name, or {DIGITS}"
        )
    return _from_folder(folder, classes, config)


def _chosen(source: str, labels: Sequence[int], most: int) -> Sequence[int]:
    """Return the numbers of the pictures that are used, in order, and log it where these are not all: the first ones,
    but as many of each class where they come class by class, since the first ones would be of few classes.
    """
    if len(labels) <= most:
        return range(len(labels))
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        by_class.setdefault(label, []).append(row)
    runs = 1 + sum(before != after for before, after in pairwise(labels))
    if runs > len(by_class):
        chosen: Sequence[int] = range(most)
    else:
        counts = evenly([len(rows) for rows in by_class.values()], most)
        chosen = sorted(row for rows, count in zip(by_class.values(), counts, strict=True) for row in rows[:count])
    found = Counter(labels[row] for row in chosen)
    fewest = min(found[label] for label in by_class)
    _log.warning(
        "only %d of the %d pictures of %s are read: maxRows; of each class at least %d and at most %d",
        most,
        len(labels),
        source,
        fewest,
        max(found.values()),
    )
    return chosen


def evenly(counts: Sequence[int], most: int) -> list[int]:
    """Return how many of each class to take, so that they are `most` in all and as equal as the classes allow.

    Args:
        counts: what each class has.
    """
    taken = [0] * len(counts)
    left = min(most, sum(counts))
    while left:
        unfinished = [at for at, count in enumerate(counts) if taken[at] < count]
        share = max(1, left // len(unfinished))
        for at in unfinished[:left]:
            more = min(share, counts[at] - taken[at])
            taken[at] += more
            left -= more
    return taken


def _digits(config: ImageConfig) -> _Source:
    from PIL import Image as Pillow
    from sklearn.datasets import load_digits

    bunch = load_digits()

    def read(rows: Sequence[int]) -> Iterator[Image]:
        for row in rows:
            image = bunch.images[row]
            if config.size or config.channels == 3:
                yield _array(Pillow.fromarray(numpy.round(image * (255 / 16)).astype(numpy.uint8)), config)
            else:
                yield numpy.asarray(image[None] / 16, dtype=numpy.float32)

    return _Source([str(digit) for digit in range(10)], [int(label) for label in bunch.target], read)


def _from_folder(folder: Path, classes: Sequence[str], config: ImageConfig) -> _Source:
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
    ]

    def read(rows: Sequence[int]) -> Iterator[Image]:
        for row in rows:
            path = found[row][0]
            with _named(f"{path} is no picture that can be read"):
                image = _array(_opened(path), config)
            yield image

    return _Source(classes, [label for _, label in found], read)


def _from_dataset(dataset: Any, config: ImageConfig) -> _Source:
    for key, column in (("image", config.image), ("label", config.label)):
        if column not in dataset.column_names:
            raise InvalidManifest(
                f"{PATH}.{key}", column, f"a column of {config.source}: {', '.join(dataset.column_names)}"
            )
    dataset = dataset.with_format(None)  # a saved one may give tensors
    names = getattr(dataset.features[config.label], "names", None)
    cells = list(dataset[config.label])
    for row, cell in enumerate(cells):
        if problem := _label_problem(cell, names):
            raise BadData(f"{_place(config, row, config.label)}: {problem}")
    if names is None:
        distinct = sorted(set(cells), key=str)
        number = {label: index for index, label in enumerate(distinct)}
        classes, labels = [str(label) for label in distinct], [number[cell] for cell in cells]
    else:
        classes, labels = list(names), cells

    def read(rows: Sequence[int]) -> Iterator[Image]:
        selected = iter(dataset if len(rows) == len(dataset) else dataset.select(rows))
        for row in rows:
            place = _place(config, row, config.image)
            with _named(f"{place}: no picture that can be read"):
                image = _array(_picture_of(next(selected)[config.image], place), config)
            yield image

    return _Source(classes, labels, read)


def _place(config: ImageConfig, row: int, column: str) -> str:
    return f"{config.source}, row {row} (from 0), column {column}"


def _label_problem(cell: object, names: Sequence[str] | None) -> str:
    """Return why a label is none of the names, or no text and no number where there are no names; empty: it is one."""
    if names is None:
        try:
            text_of_cell(cell)
        except CellProblem as problem:
            return str(problem)
        return ""
    if isinstance(cell, int) and 0 <= cell < len(names):
        return ""
    found = str(cell) if isinstance(cell, int) else kind_of_cell(cell)
    expected = f"the number of one of the {len(names)} classes, from 0"
    return f"{found}; expected {expected}. A split without labels, such as test, has -1 or null"


def _picture_of(cell: Any, place: str) -> Any:
    """Return the picture in a cell: a decoded one, its file as bytes, or `{"bytes": …}`, as Parquet files have it.

    Raises:
        BadData: it is none of these.
        OSError: the file is none of a picture.
    """
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if isinstance(content, bytes):
        return _opened(BytesIO(content))
    if not callable(getattr(content, "convert", None)):
        raise BadData(f"{place}: {kind_of_cell(cell)}; expected a picture, or the bytes of its file")
    return content


def _opened(file: Path | BytesIO) -> Any:
    from PIL import Image as Pillow

    with Pillow.open(file) as picture:
        picture.load()
        return picture


@contextmanager
def _named(problem: str) -> Iterator[None]:
    """Turn what Pillow raises for a file that it cannot read into BadData."""
    from PIL.Image import DecompressionBombError

    try:
        yield
    # Pillow raises SyntaxError for a broken PNG, and struct.error and others for a torn header.
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, DecompressionBombError) as error:
        raise BadData(f"{problem}: {error}") from error


def _array(picture: Any, config: ImageConfig) -> Image:
    channels = config.channels or (1 if picture.mode in ("1", "L", "I", "F") else 3)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if config.size is not None:
        picture = picture.resize((config.size, config.size))
    array = numpy.asarray(picture, dtype=numpy.float32) / 255
    return numpy.ascontiguousarray(array[None] if channels == 1 else array.transpose(2, 0, 1))
