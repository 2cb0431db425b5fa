"""Runs the Python blocks of the docs unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import REPOSITORY
from tests.distributed.helpers import run_distributed
from tests.parity.exported import export, logits_from

TOLERANCE = 2e-5


def python_of(page: str) -> str:
    """Return the only Python block of a page."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return block


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with both exports of a random model, a picture of several tiles and a video of three seconds."""
    folder = tmp_path_factory.mktemp("docs")
    run_distributed(export, 1, str(folder), {}, torch.arange(10), torch.randn(1, 3, 28, 28), torch.tensor([3]))
    noise = np.random.default_rng(1).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise[0]).resize((84, 56)).save(folder / "picture.png")
    with av.open(str(folder / "video.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return folder


def test_config_page(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    exec(python_of("docs/config.md"), {})
    assert capsys.readouterr().out.split() == ["256", "8"]


def test_tiled_pictures_and_videos_in_internvl_s_code(material):
    names = {
        "FOLDER": str(material / "internvl"),
        "PICTURE": str(material / "picture.png"),
        "VIDEO": str(material / "video.mp4"),
        "QUESTION": "Name the digit.",
        "MAX_FRAMES": 8,
    }
    exec(python_of("docs/checkpoints.md"), names)
    assert names["answer"].shape[1] > len(names["input_ids"])
    prompt = names["prompt"]
    starts = torch.tensor(prompt.tile_starts)
    assert len(starts) == 7 + 3, "3 x 2 tiles and a thumbnail, three frames"
    ids, tiles = torch.tensor(prompt.input_ids), prompt.tiles.load(range(len(starts)))
    with torch.no_grad():
        theirs = names["model"](input_ids=names["input_ids"][None], pixel_values=names["pixel_values"]).logits[0]
    folders = {"vision+projector+language": str(material / "long_vita")}
    (ours,) = run_distributed(logits_from, 1, folders, {}, ids, tiles, starts)
    assert (theirs - ours["logits"]).abs().max() < TOLERANCE
    assert names["answer"][0, len(names["input_ids"])] == ours["logits"][-1].argmax()
