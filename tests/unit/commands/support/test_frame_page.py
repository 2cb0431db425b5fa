import re

import torch
from PIL import Image

from longvita.commands.support.frame_page import MAX_SHOWN, write_attended


class Tiles:
    """Tiles of one colour each, distinguished by their number."""

    def __init__(self, count):
        self.count, self.asked = count, None

    def labels(self):
        return [f"a<b.mp4, frame {number}" for number in range(self.count)]

    def pictures(self, indices):
        self.asked = list(indices)
        return [Image.new("RGB", (8, 8)) for _ in indices]


def test_the_tiles_with_most_attention_come_first(tmp_path):
    tiles, shares = Tiles(1000), torch.arange(1000).flip(0).float().remainder(500) / 500_000
    write_attended(tmp_path / "page.html", "Which <one>?", "this & that", shares, tiles)
    page = (tmp_path / "page.html").read_text()
    assert tiles.asked == [*range(12), *range(500, 512)]
    captions = re.findall(r"frame (\d+)<br>([\d.]+)% of", page)
    assert len(captions) == MAX_SHOWN
    assert [int(number) for number, _ in captions[:4]] == [0, 500, 1, 501]
    assert [float(share) for _, share in captions] == sorted((float(share) for _, share in captions), reverse=True)
    assert "Which &lt;one&gt;?" in page and "this &amp; that" in page and "a&lt;b.mp4" in page
    assert page.count("<rect ") == 334, "neighbours share a bar where there are many"


def test_a_prompt_without_pictures(tmp_path):
    write_attended(tmp_path / "page.html", "q", "a", torch.zeros(0), Tiles(0))
    assert "0 frames and tiles" in (tmp_path / "page.html").read_text()
