"""What a person is told: in the right order, escaped, on one screen."""

import json
import re
from dataclasses import replace

import pytest

import outlierscope as osc
from outlierscope.criteria.finding import Finding
from outlierscope.reporting.outliers import outlier_lines
from outlierscope.reporting.summary import summarize
from outlierscope.reporting.terminal import print_summary, summary_json
from outlierscope.scanning.findings import to_table


@pytest.fixture(scope="module")
def scan(shared_model):
    texts = ["Once upon a time, there was a cat. " * 40, "The dog said: hello! " * 60]
    return osc.scan(osc.load(shared_model("stories260k")), texts * 4, tokens=1500, length=96)


def rows(*findings):
    return to_table(findings).to_pylist()


def test_a_healthy_model_reads_healthy(scan):
    summary = summarize(scan)
    assert [line.word for line in summary.formats] == ["fine"] * 5
    assert summary.verdict[0].startswith("No number format is expected to fail (predicted)")
    assert not any(line.rule == "massive" for line in summary.outliers)
    assert summary.heads[0].startswith("attention sinks: 0 of 40 heads")


def test_the_order_is_that_of_the_design_and_it_fits_a_screen(scan, capsys):
    print_summary(summarize(scan))
    printed = capsys.readouterr().out
    titles = re.findall(r"^([A-Z][A-Z ]+?)(?:  .*)?$", printed, flags=re.MULTILINE)
    assert titles == ["NUMBER FORMATS", "OUTLIERS", "HEADS", "READ", "NOT OBSERVED", "NEXT"]
    assert "predicted from this scan, not measured" in printed
    assert len(printed.splitlines()) <= 50


def test_json_says_the_same(scan):
    content = json.loads(summary_json(summarize(scan)))
    assert content["model"].endswith("stories260k")
    assert {line["name"]: line["word"] for line in content["formats"]}["float16"] == "fine"
    assert content["not_observed"][-1].startswith("generation:")


def test_json_holds_figures_beside_the_sentences(scan):
    content = json.loads(summary_json(summarize(scan)))
    float16 = content["formats"][0]
    sites = scan.evidence.measurements
    absmax = max(
        float(max(abs(stat.minimum).max(), abs(stat.maximum).max()))
        for _, stat in sites
        if stat.name == "moments"
    )
    assert float16["figure"] == pytest.approx(absmax / 65_504)
    rows = scan.findings.to_pandas()
    for line in content["outliers"]:
        found = rows[rows.criterion == line["rule"]]
        assert line["findings"] == len(found)
        assert set(line["dims"]) == set(found.dim.dropna().astype(int))
        assert line["strongest"]["score"] == found.score.max()
    assert content["attention"][0]["sink_heads"] == (rows.criterion == "sink").sum()
    assert content["figures_read"]["tokens"] == scan.evidence.corpus.tokens


def test_overflow_comes_first_and_names_its_cause(scan):
    moments = scan.stat("resid_post", "moments", layer=2)
    before = moments.maximum.clone()
    try:
        moments.maximum[7] = 100_000.0
        summary = summarize(scan)
    finally:
        moments.maximum[:] = before
    line = summary.formats[0]
    assert (line.name, line.word) == ("float16", "fails")
    assert "resid_post of layer 2 reaches" in line.cause
    assert "of 65,504" in line.cause
    assert summary.verdict[0].startswith("Predicted: float16 will fail (resid_post of layer 2 reaches")


def test_markup_in_tokens_is_printed_as_it_is(scan, capsys):
    summary = replace(summarize(scan), outliers=outlier_lines(rows(massive("[bold red]x[/]"))))
    print_summary(summary)
    assert "[bold red]x[/]" in capsys.readouterr().out


def massive(token, dim=163, layer=3, value=10_000.0, score=5000.0):
    return Finding(
        "massive",
        "activation",
        layer=layer,
        site="resid_post",
        dim=dim,
        token_id=2,
        token=token,
        value=value,
        score=score,
        count=4,
    )


def test_massive_in_words():
    found = [
        massive("<bos>", layer=layer, value=value)
        for layer, value in ((3, 10_428.0), (4, 20_000.0), (5, 103_800.0))
    ]
    assert outlier_lines(rows(*found))[0].text == (
        "dim 163 at <bos>, layers 3-5: up to 103,800 (layer 5), 5,000 x the median"
    )


def test_positions_of_images_are_named_by_class():
    row = Finding(
        "massive",
        "activation",
        layer=7,
        site="resid_post",
        dim=41,
        token_class="border_flat",
        value=580.0,
        score=1100.0,
        count=9,
        extra={"classes_of_dim": {"border_flat": 6, "inner_textured": 3}},
    )
    assert outlier_lines(rows(row))[0].text == (
        "dim 41 at flat patches of the border, textured inner patches, layer 7: up to 580 (layer 7), 1,100 x "
        "the median"
    )
