"""Report pages and tables."""

from __future__ import annotations

import csv
import io

import pytest
from matplotlib.figure import Figure

from fusion_train.report.page import Page
from fusion_train.report.tables import Table


@pytest.fixture
def table() -> Table:
    return Table(["variant", "score", "clips"], [["a_b & <c>", 1 / 3, 12000], ["none", None, 3]], "scores")


def test_html_escapes_what_stands_in_cells(table):
    assert "a_b &amp; &lt;c&gt;" in table.html()
    assert '<td class="number">0.33</td>' in table.html()


def test_csv_keeps_numbers_in_full(table):
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert rows == [["variant", "score", "clips"], ["a_b & <c>", repr(1 / 3), "12000"], ["none", "", "3"]]


def test_latex_escapes_and_aligns(table):
    assert r"\begin{tabular}{lrr}" in table.latex()
    assert r"a\_b \& <c> & 0.33 & 12,000 \\" in table.latex()


def test_equal_pages_are_equal_bytes_and_fetch_nothing(table, tmp_path):
    def page() -> str:
        figure = Figure()
        figure.subplots().plot([1, 3, 2])
        built = Page("A <title>", "lead")
        built.heading("tables")
        built.table(table)
        built.drawing(figure, "a curve")
        return built.html()

    assert page() == page()
    assert "<h1>A &lt;title&gt;</h1>" in page()
    assert not any(word in page() for word in ("<script", 'src="http', "<link"))
