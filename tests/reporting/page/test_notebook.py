"""What a scan offers in a notebook."""

import pytest

from outlierscope.reporting.curves import layer_rows


def test_a_figure_of_the_report_is_a_plotly_figure(healthy):
    figure = healthy.plot("layers-decoder-resid_post")
    rows = [row for row in layer_rows(healthy) if row["site"] == "resid_post"]
    assert list(figure.data[0].y) == [row["top_1"] for row in rows]
    assert figure.layout.yaxis.type == "log"
    with pytest.raises(KeyError, match="no figure 'nothing'; this scan has: layers-decoder-resid_post, "):
        healthy.plot("nothing")


def test_a_scan_shows_its_verdict(healthy):
    assert healthy._repr_html_().startswith("<p><strong>Healthy</strong>: ")
    assert "No number format is expected to fail (predicted)" in healthy._repr_html_()
