"""The documents say what the code does: sites, rules with their thresholds, columns, keys, words."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import outlierscope as osc
from outlierscope.corpus.batching import BATCH_SEQUENCES, BATCH_TOKENS
from outlierscope.criteria.attention_summary import _usual
from outlierscope.criteria.catalogue import CRITERIA
from outlierscope.criteria.finding import Finding
from outlierscope.model.sites import LAYER_SITES, STACK_SITES
from outlierscope.reporting import curves
from outlierscope.reporting.summary import FORMAT_NAMES
from outlierscope.scanning.findings import SCHEMA
from outlierscope.scanning.settings import DEFAULT_SITES
from outlierscope.scanning.weights import scan_weights

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md")
}


def section(page, title):
    """What stands under a heading, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {title!r}"
    return found[1]


def table(text, index=0):
    """Rows of one of the tables of a text, as lists of cells, without its head."""
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[index].splitlines()[2:]]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(scope="module")
def folder(shared_model, tmp_path_factory):
    texts = ["Once upon a time, there was a cat. " * 30]
    out = tmp_path_factory.mktemp("scan") / "folder"
    return osc.scan(osc.load(shared_model("stories260k")), texts, tokens=200, length=64, out=out).folder


@pytest.fixture(scope="module")
def weights_folder(shared_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("weights") / "folder"
    return scan_weights(shared_model("stories260k"), out=out).folder


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page):
    base = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        assert not name or (base / name).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", PAGES[Path(name).name or page], flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_every_site_is_described():
    rows = table(section("schema.md", "Sites"))
    described = {name: row[2] for row in rows for name in names(row[0])}
    assert tuple(described) == LAYER_SITES
    by_default = {name for name, statistics in described.items() if statistics == "by default"}
    silent = {"mixer_out"}  # its statistics would be kept, but nothing proves such a block
    assert by_default | silent == set(DEFAULT_SITES) - set(STACK_SITES)
    assert all(f"`{name}`" in section("schema.md", "Sites") for name in STACK_SITES)


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: criterion.name)
def test_every_rule_stands_there_with_its_thresholds(criterion):
    page = PAGES["rules.md"]
    assert f"`{criterion.name}`" in page
    for item in fields(criterion):
        value = re.escape(f"{item.default:g}")
        numbers = rf"(?<![\d.])(?:{value}(?:\.0)?|{item.default * 100:g} %)(?![\d.]*\d)"
        after = rf"`{item.name}`(?: =)? \(?{numbers}"
        before = rf"{numbers}[^|.;\n]*\n?[^|.;\n]*\(`{item.name}`"
        assert re.search(f"{after}|{before}", page), f"{criterion.name}.{item.name} = {item.default:g}"


def test_the_words_about_formats_are_named():
    text = section("rules.md", "Number formats")
    assert {"fails", "at risk", "fine", "unknown"} <= set(names(text))
    assert set(FORMAT_NAMES) <= set(names(text)), "the formats that the summary speaks of"


@pytest.mark.parametrize(
    ("causal", "classes", "heads", "words"),
    [
        (True, [], 40, "few for a decoder"),
        (True, ["initial"] * 3, 40, "few for a decoder"),
        (True, ["initial"] * 4, 40, "usual for a decoder"),
        (True, ["initial"] * 2 + ["other"] * 2, 40, "usual for a decoder"),
        (
            True,
            ["initial"] + ["other"] * 3,
            40,
            "usual in number for a decoder, but mostly not on the first token",
        ),
        (False, [], 40, ""),
        (False, ["special"] * 3, 40, "they play no great part here"),
        (False, ["other"], 40, "they play no great part here"),
        (False, ["special", "strong_delimiter", "other", "other"], 40, "usual for an encoder"),
        (False, ["initial", "cls", "other", "other"], 40, "usual for an encoder"),
        (False, ["special"] + ["other"] * 3, 40, "which is not usual for an encoder"),
    ],
)
def test_words_about_sinks_follow_the_table(causal, classes, heads, words):
    sinks = [Finding("sink", "attention", token_class=name) for name in classes]
    said = _usual(sinks, heads, 0.2, causal=causal)
    quoted = {phrase.strip('"') for phrase, _, _ in table(section("rules.md", "Attention outliers"), 1)}
    if not words:
        assert said == ""
        assert "nothing" in quoted
        return
    assert words in quoted
    assert words in said
    assert not any(other in said for other in quoted if other not in words and words not in other)


def test_columns_of_findings():
    types = {"string": "str", "int64": "int", "double": "float"}
    rows = table(section("schema.md", "findings.parquet"))
    described = [
        (name, kind)
        for cell, kinds, _ in rows
        for name, kind in zip(names(cell), kinds.split(", ") * len(names(cell)), strict=False)
    ]
    assert described == [(column.name, types[str(column.type)]) for column in SCHEMA]


def test_keys_of_scan_json(folder, weights_folder):
    text = section("schema.md", "scan.json")
    described = {name for row in table(text) for name in names(row[0])}
    whole = json.loads((folder / "scan.json").read_text(encoding="utf-8"))
    assert set(whole) == described
    weights = json.loads((weights_folder / "scan.json").read_text(encoding="utf-8"))
    assert set(weights) == described - {"identity"}
    differing = {row[0].strip("`"): row[1] for row in table(text, 1)}
    assert set(differing) <= described
    assert differing["identity"].startswith("absent")
    assert differing["self_check"].startswith("empty")
    assert weights["self_check"] == {}
    assert whole["self_check"]
    assert weights["corpus"] == {"source": None}
    assert weights["anatomy"]["stacks"] == {}
    assert weights["anatomy"]["proved"] is None
    assert weights["read"]["tensors"] > weights["read"]["tokens"] == 0
    assert {"files", "bytes"} <= set(weights["model"])
    assert {"left_out", "orientation_assumed"} <= set(weights["model"]["notes"])


def test_columns_of_figures_without_a_threshold(folder):
    scan = osc.Scan.open(folder)
    rows = table(section("schema.md", "Figures without a threshold"))
    assert len(rows) == 4
    for function, _, columns in rows:
        (call,) = names(function)
        found = getattr(curves, call.removesuffix("(scan)"))(scan)
        assert list(found[0]) == names(columns), call


def test_figures_of_batches_and_windows():
    text = section("corpora.md", "Windows")
    assert f"as make {BATCH_TOKENS} tokens, at most {BATCH_SEQUENCES}." in text
