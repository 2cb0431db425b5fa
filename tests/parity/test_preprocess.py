"""Tiles, frames and chat tokens against the published code's outputs (tests/golden/preprocess)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longvita.data.chat_template import ChatTemplate
from longvita.data.document import probe_sample
from longvita.data.formats.record import NO_OPTIONS, record_sample
from longvita.data.media.image import tile_image
from longvita.data.media.item import MediaSettings
from longvita.data.media.video import VideoFacts, count_frames, frame_indices
from longvita.data.tokenizer import LongVITATokenizer, load_tokenizer
from tests.qwen_tokenizer import qwen_tokenizer_folder

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess"


def golden(name: str) -> list[dict]:
    return json.loads((GOLDEN / name).read_text())


@pytest.fixture(scope="module")
def tokenizer() -> LongVITATokenizer:
    return load_tokenizer(qwen_tokenizer_folder())


def drawn_picture(width: int, height: int, pattern: int) -> Image.Image:
    x, y = np.arange(width)[None], np.arange(height)[:, None]
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = x * 255 // max(width - 1, 1)
    pixels[..., 1] = y * 255 // max(height - 1, 1)
    pixels[..., 2] = (3 * x + 5 * y + 37 * pattern) % 256
    return Image.fromarray(pixels)


@pytest.mark.parametrize("case", golden("tiles.json"), ids=lambda case: f"{case['width']}x{case['height']}")
def test_tiles(case):
    tiled = tile_image(drawn_picture(case["width"], case["height"], case["pattern"]))
    assert (tiled.columns, tiled.rows) == (case["columns"], case["rows"])
    assert tiled.tiles.shape == (case["num_tiles"], 3, 448, 448)
    tiles = tiled.tiles.double()
    # The expected values are rounded to five decimals.
    np.testing.assert_allclose(tiles.mean((1, 2, 3)), case["tile_mean"], rtol=0, atol=8e-6)
    np.testing.assert_allclose(tiles.std((1, 2, 3)), case["tile_std"], rtol=0, atol=8e-6)


@pytest.mark.parametrize("case", golden("frames.json"))
def test_frames(case):
    arguments = (case["num_frames"], case["fps"], case["max_fps"], case["max_num_frames"])
    assert frame_indices(*arguments) == case["indices"]
    assert count_frames(VideoFacts(*arguments[:2]), *arguments[2:]) == len(case["indices"])


@pytest.mark.parametrize("number", range(len(golden("chat.json"))))
def test_chat(number, tokenizer):
    case = golden("chat.json")[number]
    settings = MediaSettings(max_num_frames=case["max_num_frames"], max_fps=case["max_fps"])
    template = ChatTemplate(tokenizer, tokens_per_tile=256)
    sample = record_sample(case["sample"], NO_OPTIONS)
    facts = probe_sample(sample, GOLDEN, settings.max_fps)
    encoded = template.encode(sample.turns, facts.grids(settings), facts.frame_counts(settings))
    assert run_lengths(encoded.input_ids) == case["input_ids_rle"]
    assert run_lengths(encoded.labels) == case["labels_rle"]
    assert encoded.tile_starts.tolist() == case["tile_starts"]
    assert encoded.num_tiles == case["num_tiles"]
    assert len(encoded.input_ids) == case["length"]


def run_lengths(values: np.ndarray) -> list[list[int]]:
    bounds = np.flatnonzero(np.diff(values, prepend=values[0] - 1, append=values[-1] - 1))
    return [[int(values[start]), int(end - start)] for start, end in itertools.pairwise(bounds)]
