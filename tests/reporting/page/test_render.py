"""The page says what the statistics say, holds no text that could run, and needs nothing from outside."""

import base64
import hashlib
import re

import pytest

from outlierscope.reporting.curves import head_rows, layer_rows, weight_rows
from outlierscope.reporting.page.parts import Table
from outlierscope.reporting.page.payload import page_data
from outlierscope.reporting.page.render import render_page
from outlierscope.reporting.page.terms import TERMS, explained
from outlierscope.scanning.weights import scan_weights
from tests.reporting.page.conftest import HOSTILE
from tests.reporting.page.content import data_of, packed, visible


@pytest.fixture(scope="module")
def page(healthy):
    return render_page(healthy)


def test_the_healthy_control_reads_healthy(page):
    assert '<p class="word fine">Healthy</p>' in page
    assert "No number format is expected to fail (predicted)" in visible(page)


def test_sections_come_in_their_order_and_each_figure_has_its_numbers(page):
    names = re.findall(r'<section id="(\w+)">', page)
    assert names == ["verdict", "layers", "where", "heads", "weights", "findings"]
    data = data_of(page)
    figures = re.findall(r'data-figure="([^"]+)"', page)
    assert sorted(figures) == sorted(data["figures"])
    assert set(figures) <= set(re.findall(r'data-table="([^"]+)"', page))
    assert all(data["tables"][name] for name in figures)


def test_curves_are_the_rows_of_the_statistics(healthy, page):
    data = data_of(page)
    rows = [row for row in layer_rows(healthy) if row["site"] == "resid_post"]
    traces = {trace["name"]: trace["y"] for trace in data["figures"]["layers-decoder-resid_post"]["data"]}
    for name, figure in (("largest", "top_1"), ("99.99 % quantile", "quantile_9999"), ("median", "median")):
        assert traces[name] == pytest.approx([row[figure] for row in rows], rel=1e-3)
    sinks = data["tables"]["heads-decoder-pattern-sink-mass"]
    assert [row["mean_largest_alpha"] for row in sinks] == pytest.approx(
        [row["mean_largest_alpha"] for row in head_rows(healthy)], rel=1e-5
    )
    columns = [row["column_largest"] for row in data["tables"]["weights-decoder-column"]]
    assert columns == pytest.approx([row["column_largest"] for row in weight_rows(healthy)], rel=1e-5)


def test_maps_of_dims_are_the_moments(healthy, page):
    for row in data_of(page)["tables"]["dims-decoder"]:
        moments = healthy.stat("resid_post", "moments", row["layer"])
        for column, value in row.items():
            if column != "layer":
                dim = int(column.removeprefix("dim "))
                assert value == pytest.approx(
                    max(-float(moments.minimum[dim]), float(moments.maximum[dim])), rel=1e-4
                )


def test_findings_are_the_file(infected):
    rows = data_of(render_page(infected))["tables"]["findings"]
    expected = infected.findings.to_pylist()
    assert len(rows) == len(expected) == 3000
    assert [row["value"] for row in rows] == [row["value"] for row in expected]
    assert rows[0]["context"] == expected[0]["context"]


def test_hostile_texts_are_no_markup(infected):
    page = render_page(infected)
    data = data_of(page)
    assert len(re.findall(r"<script", page)) == 3  # the data, Plotly and the page's own
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    for figure in data["figures"].values():
        assert "<script" not in str(figure)
    assert any("&lt;script&gt;" in str(figure) for figure in data["figures"].values())
    assert data["tables"]["findings"][0]["token"] == HOSTILE


def test_only_scripts_with_known_hashes_may_run(page):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    own = page.rpartition("<script>")[2].partition("</script>")[0]
    for script in (own, packed(page, "plotly")):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert not re.search(r'(?:src|href)="(?!#)', page)


def test_weights_alone_have_their_own_sections(shared_model):
    page = render_page(scan_weights(shared_model("stories260k")))
    assert re.findall(r'<section id="(\w+)">', page) == ["verdict", "weights", "findings"]
    assert '<p class="word unknown">Not judged as a whole</p>' in page


def test_terms_are_explained_once_and_texts_escaped():
    shown = explained("a sink head and attention sinks, attention sinks <b>")
    assert shown.count("<button") == 1
    assert 'data-term="attention sink"' in shown
    assert shown.endswith(" &lt;b&gt;")
    assert all(text.endswith((".", ")")) for text in TERMS.values())


def test_small(page):
    assert len(page.encode()) < 4 * 2**20


def test_numbers_that_json_lacks_are_left_out():
    table = Table("odd", "Odd", ("a", "b"), [(float("nan"), None), (1.5, "x")])
    page = f'<script type="text/plain" id="data">{page_data([], [table], {})}</script>'
    assert data_of(page)["tables"]["odd"] == [{"a": None, "b": None}, {"a": 1.5, "b": "x"}]
