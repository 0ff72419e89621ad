"""Data flows one way: no room of the package imports a higher one."""

import ast
from pathlib import Path

import outlierscope

ROOMS = [
    "errors",
    "listener",
    "version",
    "corpus",
    "model",
    "stats",
    "weights",
    "criteria",
    "scanning",
    "reporting",
    "cli",
]
"""Lowest first."""

BACKWARD = {
    (
        "scanning",
        "reporting",
    ): "a finished scan writes its own page, and renders it on request; imported when called",
}


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("outlierscope.")}
    return found


def test_no_room_imports_a_higher_one():
    root = Path(outlierscope.__file__).parent
    wrong = []
    for path in root.rglob("*.py"):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        wrong += [
            f"{path.relative_to(root)} imports {other}"
            for other in imported_rooms(path)
            if ROOMS.index(other) > ROOMS.index(room) and (room, other) not in BACKWARD
        ]
    assert not wrong
