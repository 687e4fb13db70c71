"""The check of loaded tensors: a model whose files lack tensors is refused, instead of being completed at random.

transformers fills tensors that the files lack, or have in another shape, with random numbers: two peers would start
from different weights, and the policy would differ from its own reference. Names that a model's class declares as
optional, tied heads among them, have been removed from the lists before they come here. Buffers may be absent, since
the constructor computes them. Tensors that the model does not have are refused inside of its own parts, where they
mean another configuration, and named where they are a part of its own, such as a vision tower.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swarmgame.errors import InvalidManifest
from swarmgame.models.uri import PATH

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_SHOWN = 3
_CURE = "Fetch or copy the complete model again, with the config.json that it was saved with"


def check_tensors(model: PreTrainedModel, info: Mapping[str, Any], uri: str) -> None:
    """Compare what was loaded with what the model needs.

    Args:
        info: transformers' loading info, of a call with `ignore_mismatched_sizes`.
        uri: of the manifest, for messages.

    Raises:
        InvalidManifest: tensors are missing, unexpected, or of another shape; names the first of each.
    """
    buffers = {name for name, _ in model.named_buffers()}
    missing, mismatched = set(info["missing_keys"]), set(info["mismatched_keys"])
    # A tensor of another shape was not loaded, so it is listed as missing too.
    missing -= {name for name, _, _ in mismatched}
    unexpected = set(info["unexpected_keys"])
    inside = {name for name in unexpected if _is_inside(name, model)}
    problems = [
        _named("missing", in_order(missing - buffers)),
        _named(
            "of another shape than config.json needs",
            [f"{name}: {_shape(found)}, expected {_shape(expected)}" for name, found, expected in _sorted(mismatched)],
        ),
        _named("not part of this model", in_order(inside)),
    ]
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise InvalidManifest(PATH, uri, f"a complete {type(model).__name__}: {found}. {_CURE}")
    if missing:
        logger.warning("%s: %s; computed instead", uri, _named("missing", in_order(missing)))
    if unexpected:
        text = _named("of parts that this model does not have", in_order(unexpected))
        logger.warning("%s: %s; left out", uri, text)


def in_order(names: Collection[str]) -> list[str]:
    """Return names with their numbers in order: layer 2 before layer 10."""
    return sorted(names, key=lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in _parts(name)])


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]


def _sorted(mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]]) -> list[tuple[str, Any, Any]]:
    by_name = {name: (name, found, expected) for name, found, expected in mismatched}
    return [by_name[name] for name in in_order(by_name)]


def _is_inside(name: str, model: PreTrainedModel) -> bool:
    """Whether a tensor belongs to a part that the model has: a list of layers, or a module below one of its own."""
    modules = {module for module, _ in model.named_modules() if module}
    parents = name.split(".")[:-1]
    known = [".".join(parents[:length]) for length in range(1, len(parents) + 1)]
    # One level (`model.`, `transformer.`) is the model itself, which other parts may stand in too.
    return any(each in modules and "." in each for each in known) or ".".join(parents) in modules


def _named(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    count = len(names)
    more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
    verb = "tensor is" if count == 1 else "tensors are"
    return f"{count} {verb} {what} ({', '.join(names[:_SHOWN])}{more})"


def _shape(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes)) or "a number"
