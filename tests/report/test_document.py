"""A report's page, Markdown and text: what is shown, and that nothing in it runs."""

from __future__ import annotations

import re

from safesteer_edge.report.document import Plot, PlotPoint, Report, Series, Table, Texts

EVIL = "<script>alert('&')</script>\x1b]0;title\x07 | a\u202eb"
TABLE = Table.of(
    "Shares",
    "as measured",
    [{"name": "off", "n": 7}, {"name": "a longer one", "n": 12}],
    {"defence": "name", "cases": "n", "twice": lambda row: str(2 * row["n"])},
)


def page(*sections: Table | Plot | Texts, title: str = "A report") -> str:
    return Report(title, ["What was done."], sections).to_html()


def plot_of(*points: PlotPoint, name: str = "one") -> Plot:
    series = (Series(name, points),)
    return Plot("A plot", "", series, x_label="x", y_label="y", x_range=(0.0, 10.0))


def test_every_text_of_every_kind_of_section_is_escaped():
    point = PlotPoint(1, 0.5, EVIL)
    shown = page(
        Table(EVIL, EVIL, (EVIL,), ((EVIL,),)),
        Plot(EVIL, EVIL, (Series(EVIL, (point,)),), x_label=EVIL, y_label=EVIL),
        Texts(EVIL, EVIL, ((EVIL, {EVIL: EVIL}),)),
        title=EVIL,
    )
    assert "<script" not in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert shown.count("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;") == 19


def test_a_section_without_content_is_not_shown():
    empty = (
        Table("No table", "", ("a",), ()),
        Plot("No plot", "", (), x_label="x", y_label="y"),
        Texts("No texts", "", ()),
    )
    assert "<h2>" not in page(*empty)
    assert "<h2>Shares</h2>" in page(*empty, TABLE)
    assert "No table" not in Report("A report", (), empty).to_markdown()


def test_a_plot_has_its_points_in_its_axes_and_what_is_outside_on_their_edge():
    shown = page(plot_of(PlotPoint(0, 0), PlotPoint(5, 0.5), PlotPoint(99, -3)))
    (line,) = re.findall(r'<polyline points="([^"]*)"', shown)
    drawn = [tuple(float(value) for value in pair.split(",")) for pair in line.split()]
    assert drawn == [(60, 350), (255, 185), (450, 350)]


def test_a_main_point_is_drawn_after_all_others_and_with_its_intervals():
    main = PlotPoint(5, 0.5, "chosen", x_range=(4.0, 6.0), y_range=(0.4, 0.6), is_main=True)
    shown = page(plot_of(main, PlotPoint(1, 0.1, "other")))
    labels = re.findall(r"<title>(chosen|other)</title>", shown)
    assert labels == ["other", "chosen"]
    assert 'x1="216.0" y1="185.0" x2="294.0" y2="185.0"' in shown
    assert 'x1="255.0" y1="218.0" x2="255.0" y2="152.0"' in shown


def test_a_table_is_aligned_in_text_and_keeps_its_shape_in_markdown():
    assert TABLE.to_text().splitlines() == [
        "Shares",
        "  defence       cases  twice",
        "  off               7     14",
        "  a longer one     12     24",
    ]
    odd = Table("Odd", "two\nlines", ("a|b",), (("c | d\ne",),))
    assert odd.to_markdown().splitlines()[2:] == [
        "two lines",
        "",
        "| a\\|b |",
        "| --- |",
        "| c \\| d e |",
    ]
