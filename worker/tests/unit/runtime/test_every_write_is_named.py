"""Every write in the packages of a peer and its runner stands in a block that names the path and what to do, or is
listed here with the reason why it need not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import swarmgame

PACKAGE = Path(swarmgame.__file__).parent
LISTED = {
    "archive/files.py:write_round": "the archive's thread: any OSError switches it off, and is shown",
    "archive/writer.py:_open": "likewise",
    "archive/writer.py:_keep_state": "likewise",
    "cli/new.py:scaffold": "a command that plays no game: `main` names the path",
    "inference/vllm.py:_saved": "an OSError is a sentence with the folder",
    "launch/exit_record.py:record": "must not hide the error that is being recorded; the runner looks for a full disk",
    "launch/exit_record.py:keep_previous": "its callers name the folder",
    "launch/fork_server.py:_become_peer": "the runner has opened the file before",
    "models/cache.py:_put": "its caller names the folder",
    "models/fingerprint.py:_content": "a hash that is not kept is made again",
    "observability/trackers/weights_and_biases.py:open": "an error of a tracker switches it off, and is shown",
    "runtime/checkpoint.py:_put": "its caller names the folder",
    "runtime/checkpoint.py:_write_flushed": "its callers name the folder",
    "runtime/export.py:_put": "its caller names the folder",
    "runtime/export.py:_write_modules": "likewise",
    "runtime/repeatable.py:_main": "a check of this repository, not part of a run",
    "swarm/identity.py:_write": "its caller names the file",
    "trainer": "`write_export` and the cache name the folder",
}
WRITES = {"write_text", "write_bytes", "mkdir", "rename", "symlink_to", "mkstemp", "mkdtemp", "link"}


def writes(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield function and line of each write outside of `with writing(…)`."""

    def visit(node: ast.AST, function: str, named: bool) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function, named = node.name, False
        if isinstance(node, ast.With) and any("writing(" in ast.unparse(item) for item in node.items):
            named = True
        if isinstance(node, ast.Call) and not named and _is_write(node):
            yield function, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function, named)

    yield from visit(tree, "", False)


def _is_write(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    if name == "open":
        modes = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        flags = ast.unparse(call)
        return any(set(mode) <= set("wabx+t") and set(mode) & set("wax") for mode in modes) or "O_CREAT" in flags
    if name == "replace":  # of a path: one argument; of a text: two; of a dataclass: keywords
        return owner == "os" or (len(call.args) == 1 and not call.keywords and owner not in {"", "dataclasses"})
    return name in WRITES and owner not in {"re"}


def test_every_write_names_its_path_or_is_listed_with_a_reason() -> None:
    found: dict[str, list[int]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = str(path.relative_to(PACKAGE))
        if "templates" in path.parts:
            continue
        for function, line in writes(ast.parse(path.read_text())):
            found.setdefault(f"{place}:{function}", []).append(line)
    unnamed = {
        place: at for place, at in found.items() if place not in LISTED and place.partition("/")[0] not in LISTED
    }
    assert unnamed == {}
    unused = {each for each in LISTED if not any(place == each or place.startswith(f"{each}/") for place in found)}
    assert unused == set()


def test_a_write_outside_of_such_a_block_is_found() -> None:
    code = "def f(path):\n    with writing(path):\n        path.mkdir()\n    path.write_text('')\n    open(path, 'a')\n"
    assert list(writes(ast.parse(code))) == [("f", 4), ("f", 5)]
