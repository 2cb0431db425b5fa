"""report.html: one file with the results of the run."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from longvita.pages import as_data_url
from tools.quickstart.picture import in_terminal
from tools.quickstart.report import ReportAnswer, write_html

REPORT = {
    "stages": [
        {"name": "stage1", "layout": "TP2", "sequence_length": 128, "seconds": 31.0, "loss": 0.25, "accuracy": 0.97,
         "questions": 1000},
        {"name": "stage4", "layout": "TP2 SP", "sequence_length": 2048, "seconds": 150.0, "loss": 0.08,
         "accuracy": 0.96, "questions": 100},
    ],
    "short_context_accuracy_after": 0.931,
    "export_max_abs_logit_difference": 1.5e-5,
    "seconds": 720.0,
}  # fmt: skip
NEEDLES = {"needles_330_0": [19, 20], "needles_330_100": [17, 20], "needles_80_0": [6, 6], "needles_80_100": [3, 6]}
STEPS = [
    {"step": 10, "loss": 2.5, "tokens": 900, "padding_tokens": 100},
    {"step": 20, "loss": 0.5, "tokens": 700, "padding_tokens": 300},
]


class Checker(HTMLParser):
    """Collects the text and the sources of the page; end tags must match."""

    EMPTY = {"meta", "img", "!doctype"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """`<path ... />` of SVG opens nothing."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(tmp_path) -> Checker:
    folder = tmp_path / "stage1"
    folder.mkdir()
    lines = [*STEPS, {"step": 20, "validation": {"digit": 0.1}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture = Image.new("RGB", (56, 56), "red")
    answers = [
        ReportAnswer("0004_0.png", "digit?", "digit four", "digit four", [picture]),
        ReportAnswer("clip.mp4", "after?", "after <b>six</b>", "after nine", [picture, picture]),
    ]
    write_html(tmp_path, REPORT, NEEDLES, picture, answers, ["stage1"])
    checker = Checker()
    checker.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
    checker.close()
    return checker


def test_page_is_complete_and_needs_no_other_file(page):
    assert page.open == []
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)


def test_page_shows_stages_fill_needles_and_answers(page):
    text = " ".join(page.text)
    for wanted in (
        "TP2 SP", "2048", "0.970 of 1000", "0.931", "1.5e-05",  # stages
        "80.0%",  # 1,600 of 2,000 positions
        "330 frames", "80 frames", "depth 0%", "depth 100%", "19 of 20", "17 of 20", "3 of 6",
        "0004_0.png", "digit four", "after <b>six</b>", "should be: after nine",
        "2.50",  # the highest loss, on the axis
    ):  # fmt: skip
        assert wanted in text, wanted
    assert text.count("should be") == 1, "a right answer is not marked as wrong"


def test_loss_curve_falls(tmp_path, page):
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    points = re.search(r"polyline points='([^']+)'", html)[1].split()
    (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in points)
    assert x2 > x1
    assert y2 > y1, "SVG's y goes down, so a falling loss rises"


def test_pictures_survive_the_page():
    picture = Image.new("L", (5, 3), 77)
    data = base64.b64decode(as_data_url(picture).split(",")[1])
    assert Image.open(io.BytesIO(data)).getpixel((4, 2)) == (77, 77, 77)


def test_pictures_in_a_terminal():
    picture = Image.new("RGB", (16, 16), "black")
    picture.paste("white", (0, 0, 16, 1))
    text = in_terminal([picture, picture])
    rows = text.plain.splitlines()
    assert len(rows) == 8, "a character shows two rows of pixels"
    assert {row.count("▀") for row in rows} == {32}
    assert text.spans[0].style == "#ffffff on #000000"


def test_a_report_without_results_is_no_error(tmp_path):
    write_html(tmp_path, {**REPORT, "stages": []}, {}, None, [], ["missing"])
    assert Path(tmp_path / "report.html").stat().st_size > 0
