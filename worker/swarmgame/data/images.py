"""The `images` data: labelled pictures, for policies that read images.

Reads a folder with a folder per class, a dataset of the hub (`hf://org/name[@revision]`) or saved by `datasets`, and
scikit-learn's 8×8 digits (`sklearn://digits`), which need no download. A question has no text: its payload is a
float32 array, channels × height × width, in [0, 1], its answer the number of the class. Invariant: payloads are
read-only, and equal byte by byte on every peer with the same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
from numpy.typing import NDArray
from pydantic import Field

from swarmgame.data.dataset import HUB, PATH, FiniteConfig, FiniteData, existing, load_from_hub
from swarmgame.errors import BadData, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Prompt, Question, QuestionRef

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


class ImageData(FiniteData):
    """See the module. `classes` are the names of the labels, `shape` is the shape of every payload."""

    Config = ImageConfig
    config: ImageConfig

    def __init__(self, config: ImageConfig, context: ComponentContext | None = None) -> None:
        context = context or ComponentContext()
        self.classes, pairs = _read(config, context)
        self._labels: list[int] = []
        self._images: list[Image] = []
        for image, label in pairs:
            if len(self._images) == config.max_rows:
                break
            if self._images and image.shape != self._images[0].shape:
                raise InvalidManifest(
                    f"{PATH}.size", config.size, f"a size: pictures are {self._images[0].shape} and {image.shape}"
                )
            image.setflags(write=False)
            self._images.append(image)
            self._labels.append(label)
        if not self._images:
            raise InvalidManifest(f"{PATH}.source", config.source, "data with at least one picture")
        super().__init__(
            config,
            context,
            (image.tobytes() + bytes([label % 256]) for image, label in zip(self._images, self._labels, strict=True)),
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


def _read(config: ImageConfig, context: ComponentContext) -> tuple[Sequence[str], Iterator[tuple[Image, int]]]:
    """Return the names of the classes, and the pictures with their labels, in the same order on every peer."""
    if config.source == DIGITS:
        return [str(digit) for digit in range(10)], _digits(config)
    if config.source.startswith(HUB):
        return _from_dataset(load_from_hub(config, context), config)
    folder = existing(config.source)
    if (folder / "dataset_info.json").exists():
        return _from_dataset(load_from_hub(config, context), config)
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not classes:
        raise InvalidManifest(
            f"{PATH}.source", config.source, f"a folder with a folder per class, {HUB}org/name, or {DIGITS}"
        )
    return classes, _from_folder(folder, classes, config)


def _digits(config: ImageConfig) -> Iterator[tuple[Image, int]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for image, label in zip(bunch.images, bunch.target, strict=True):
        if config.size or config.channels == 3:
            from PIL import Image as Pillow

            yield _array(Pillow.fromarray(numpy.round(image * (255 / 16)).astype(numpy.uint8)), config), int(label)
        else:
            yield numpy.asarray(image[None] / 16, dtype=numpy.float32), int(label)


def _from_folder(folder: Path, classes: Sequence[str], config: ImageConfig) -> Iterator[tuple[Image, int]]:
    from PIL import Image as Pillow

    for label, name in enumerate(classes):
        for path in sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES):
            try:
                with Pillow.open(path) as picture:
                    yield _array(picture, config), label
            except OSError as error:
                raise BadData(f"{path} is no picture that can be read: {error}") from error


def _from_dataset(dataset: Any, config: ImageConfig) -> tuple[Sequence[str], Iterator[tuple[Image, int]]]:
    for key, column in (("image", config.image), ("label", config.label)):
        if column not in dataset.column_names:
            raise InvalidManifest(
                f"{PATH}.{key}", column, f"a column of {config.source}: {', '.join(dataset.column_names)}"
            )
    names = getattr(dataset.features[config.label], "names", None)
    labels = sorted(set(dataset[config.label]), key=str) if names is None else list(range(len(names)))
    classes = [str(label) for label in labels] if names is None else list(names)
    place = {label: index for index, label in enumerate(labels)}
    return classes, ((_array(row[config.image], config), place[row[config.label]]) for row in dataset)


def _array(picture: Any, config: ImageConfig) -> Image:
    channels = config.channels or (1 if picture.mode in ("1", "L", "I", "F") else 3)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if config.size is not None:
        picture = picture.resize((config.size, config.size))
    array = numpy.asarray(picture, dtype=numpy.float32) / 255
    return numpy.ascontiguousarray(array[None] if channels == 1 else array.transpose(2, 0, 1))
