"""The page of families: what it says, written and read back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
import transformers

ROWS = ("proved", "not proved", "no attention", "not built", "crashed")
"""What can become of a family."""


@dataclass
class StackRow:
    """One stack: layouts, routes and identities of its blocks, and which sites are missing, by reason."""

    name: str
    entry: str
    layouts: list[str]
    routes: list[str]
    identities: list[str]
    missing: dict[str, list[str]]


@dataclass
class Row:
    """What became of one family: ``status`` is one of ``ROWS``, with the reason where it is not ``proved``."""

    family: str
    status: str
    model: str = ""
    reason: str = ""
    stacks: list[StackRow] = field(default_factory=list)
    seconds: float = 0.0


INTRODUCTION = """# Families

Written by `python benchmarks/families.py --write`; do not edit. A family is a model type of transformers that
`AutoModel` has a class for. A tiny model of each, made from its configuration class without downloading anything, is
fed and its anatomy is proved block by block, with every parameter drawn at random. No family is named in the code.
"""


def render_page(rows: list[Row]) -> str:
    """The page as markdown; the same for the same rows."""
    counts = Counter(row.status for row in rows)
    attending = counts["proved"] + counts["not proved"] + counts["crashed"]
    built = len(rows) - counts["not built"]
    share = counts["proved"] / max(attending, 1)
    parts = [
        INTRODUCTION,
        f"Made with transformers {transformers.__version__} and torch {torch.__version__}.\n",
        f"- {len(rows)} families are known to `AutoModel`;",
        f"- {built} of them build from their configuration class; the other {counts['not built']} stand below;",
        f"- {attending} of those have (or may have) a stack of blocks that attend; {counts['no attention']} have none;",
        f"- **{counts['proved']} of these {attending} ({share:.1%}) are proved in all their stacks**;"
        f" {counts['not proved']} are not, {counts['crashed']} crashed.\n",
        "A model of blocks without attention (state spaces, Fourier transforms) is scanned at what its mixers add and at",
        "the residual stream where that was proved; any other is scanned by its weights.\n",
        "## Families with an attention stack\n",
        "Per stack: layout of its blocks; route by which attention is observed (`registry`: transformers' attention",
        "interface; `returned`: weights handed out by the module); sites that are not observed, with the reason.\n",
        "| family | status | stacks | proved identities | not observed |",
        "|---|---|---|---|---|",
        *(_line(row) for row in rows if row.status in ("proved", "not proved", "crashed")),
    ]
    for status, title in (("no attention", "No stack of blocks that attend"), ("not built", "Not built")):
        parts += [f"\n## {title}\n", "| family | status | why |", "|---|---|---|"]
        parts += [
            f"| {row.family} | {status} | {_cell(row.reason)} |" for row in rows if row.status == status
        ]
    return "\n".join(parts) + "\n"


def read_page(text: str) -> dict[str, str]:
    """Family -> status, of every table of a page."""
    cells = [
        [cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    return {line[1]: line[2] for line in cells if line[2] in ROWS}


def _line(row: Row) -> str:
    stacks = "<br>".join(
        f"{stack.name}: {', '.join(stack.layouts)}"
        + (f" ({', '.join(stack.routes)})" if stack.routes else "")
        + (f", fed at `{stack.entry}`" if stack.entry else "")
        for stack in row.stacks
    )
    identities = sorted({identity for stack in row.stacks for identity in stack.identities})
    missing = [
        f"{stack.name}: {', '.join(sites)}: {why}"
        for stack in row.stacks
        for why, sites in stack.missing.items()
    ]
    if row.status != "proved":
        missing.insert(0, row.reason)
    return (
        f"| {row.family} | {row.status} | {stacks} | {'<br>'.join(map(_cell, identities))} "
        f"| {'<br>'.join(_cell(item) for item in dict.fromkeys(missing))} |"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
