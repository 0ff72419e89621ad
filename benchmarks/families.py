"""Which families of transformers are understood: a tiny model of each, drawn at random, fed and proved.

A family is a model type of transformers that ``AutoModel`` has a class for. Each is built from its configuration
class, made tiny (see ``tiny_configs.py``), and its anatomy is discovered: every stack of blocks that attend, and
for each block the identities that ``outlierscope.model.discovery.proof`` lists.

    python benchmarks/families.py                     # every family, which takes minutes
    python benchmarks/families.py bert llama          # some, each with its full reasons
    python benchmarks/families.py --write             # writes docs/families.md
    python benchmarks/families.py --check             # fails when a family that the page calls proved no longer is
    python benchmarks/families.py --json FILE         # also the rows, for a closer look
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded: configurations and weights are made here

import torch
import transformers
from families_page import ROWS, Row, StackRow, read_page, render_page
from rich.console import Console
from rich.progress import track
from tiny_configs import NotBuilt, tiny_models
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from outlierscope.model.discovery.discover import discover
from outlierscope.model.discovery.feeding import runs_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from outlierscope.model.anatomy import StackAnatomy

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
SECONDS = 60
"""A family that takes more of a processor's time than this is given up."""

PATIENCE = 15
"""After so many seconds of a processor no further way of making a family tiny is begun."""

PROCESSES = 2

MEMORY = 6 * 2**30
"""Bytes that one process may take."""


def examine(family: str) -> Row:
    """Build one family and discover its anatomy; whatever goes wrong becomes the row's reason."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore")
    started, begun = time.perf_counter(), time.process_time()
    row = Row(family, status="crashed")
    signal.signal(signal.SIGPROF, _give_up)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        furthest: tuple[bool, bool, int] | None = None
        for model in _likely_first(family):
            anatomy = discover(model)
            ran = "forward pass" not in anatomy.reason
            reached = (anatomy.proved is True, ran, len(anatomy.stacks))
            if furthest is None or reached > furthest:
                furthest = reached
                row.model = type(model).__name__
                row.status = {True: "proved", False: "not proved", None: "no attention"}[anatomy.proved]
                row.reason = anatomy.reason
                row.stacks = [_stack_row(stack) for stack in anatomy.stacks.values()]
            if ran or time.process_time() - begun > PATIENCE:
                break
    except NotBuilt as error:
        row.status, row.reason = "not built", str(error)
    except (Exception, GivenUp) as error:  # of any library: a crash is what this table must show
        row.reason = _one_line(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        row.seconds = time.perf_counter() - started
    return row


def _likely_first(family: str) -> Iterator[PreTrainedModel]:
    """The smallest model, those that run as a whole, then those that may run part by part, which takes longer."""
    parted = []
    for place, model in enumerate(tiny_models(family)):
        if place == 0 or runs_whole(model):
            yield model
        else:
            parted.append(place)
    yield from (model for place, model in enumerate(tiny_models(family)) if place in parted)


class GivenUp(BaseException):
    """A family took too long; no ``except Exception`` of foreign code may take it for its own."""


def _give_up(*_: object) -> NoReturn:
    raise GivenUp(f"it took more than {SECONDS} seconds of a processor")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _stack_row(stack: StackAnatomy) -> StackRow:
    missing: dict[str, set[str]] = {}
    for of_place in (stack.missing, *(layer.missing for layer in stack.layers)):
        for site, why in of_place.items():
            missing.setdefault(why, set()).add(site)
    return StackRow(
        name=stack.name,
        entry=stack.entry,
        layouts=sorted({layer.layout for layer in stack.layers}),
        routes=sorted({layer.attention.route for layer in stack.layers if layer.attention}),
        identities=sorted({identity for layer in stack.layers for identity in layer.identities}),
        missing={why: sorted(sites) for why, sites in sorted(missing.items())},
    )


def examine_all(families: list[str]) -> list[Row]:
    """Examine families side by side, with a bar on stderr."""
    # A process each: what foreign code keeps in memory, which is bounded, must not be counted against the next.
    with multiprocessing.get_context("fork").Pool(PROCESSES, maxtasksperchild=1) as pool:
        coming = pool.imap_unordered(examine, families, chunksize=1)
        bar = track(families, "families", console=Console(stderr=True))
        rows = [coming.next(timeout=30 * SECONDS) for _ in bar]
    return sorted(rows, key=lambda row: row.family)


def lost(rows: list[Row], page: str) -> list[str]:
    """Families that the page calls proved and that are not, each with the reason."""
    proved = {family for family, status in read_page(page).items() if status == "proved"}
    return [f"{row.family}: {row.reason}" for row in rows if row.family in proved and row.status != "proved"]


def main() -> int:
    """Examine, print, write or check; 1 where a proved family was lost or one crashed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="model types; none: all of them")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} (all families only)")
    parser.add_argument("--check", action="store_true", help="fail when a proved family no longer is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    options = parser.parse_args()
    unknown = sorted(set(options.families) - set(MODEL_MAPPING_NAMES))
    if unknown:
        parser.error(f"AutoModel has no class for {', '.join(unknown)}")
    if options.write and options.families:
        parser.error("--write needs every family; leave the names out")
    if options.check and not PAGE.exists():
        parser.error(f"there is no {PAGE.name} to check against; make it with --write")
    page = PAGE.read_text() if options.check else ""
    rows = examine_all(options.families or sorted(MODEL_MAPPING_NAMES))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    for row in rows if options.families else []:
        print(json.dumps(asdict(row), indent=2))
    counts = Counter(row.status for row in rows)
    print(", ".join(f"{counts[status]} {status}" for status in ROWS), f"of {len(rows)}")
    if options.write:
        PAGE.write_text(render_page(rows))
    failures = [f"{row.family}: {row.reason}" for row in rows if row.status == "crashed"]
    if options.check:
        failures += lost(rows, page)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
