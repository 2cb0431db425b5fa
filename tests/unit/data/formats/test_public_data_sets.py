"""The public data sets of docs/formats.md: small files of their published forms, read with the lines of that page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from longvita.config.schema import DatasetConfig
from longvita.data.formats import read_samples
from longvita.data.formats.paths import files_of_entry
from longvita.data.formats.record import FormatOptions
from longvita.data.media.media_file import read_bytes, resolve
from longvita.data.sample import Sample
from longvita.data.storage import remote
from tests.conftest import REPOSITORY
from tests.unit.data.format_material import dump_json, llava, png, write_parquet, write_tar
from tests.unit.data.material import conversation, write_jsonl

RED, FILM = png("red"), b"a film"
PICTURE = {"bytes": RED, "path": "1.png"}
ROW = re.compile(r"^\| (.+?) \| `(\{data_paths: .+\})` \|$", re.MULTILINE)


def page_rows() -> dict[str, dict]:
    """The table of public data sets: the lines of each."""
    text = (REPOSITORY / "docs" / "formats.md").read_text()
    return {name: yaml.safe_load(lines) for name, lines in ROW.findall(text.split("## Public data sets")[1])}


def media(folder: Path, name: str, content: bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def long_vita(folder):
    media(folder, "media/a/1.png", RED)
    sample = conversation("<image>\nWhat?", "red", images=["a/1.png"])
    write_jsonl(folder / "data.jsonl", [{**sample, "videos": None}, {**conversation("What?", "red"), "images": None}])


def llava_15(folder):
    media(folder, "images/coco/1.png", RED)
    lines = [llava("<image>\nWhat?", "red", id="1", image="coco/1.png"), llava("What?", "red", id="2")]
    dump_json(folder / "llava_v1_5_mix665k.json", lines)


def llava_onevision(folder):
    row = {"id": "1", "image": PICTURE, **llava("<image>\nWhat?", "red"), "data_source": "aokvqa"}
    write_parquet(folder / "llava_onevision" / "aokvqa" / "train-00000-of-00001.parquet", [row, {**row, "image": None}])


def cauldron(folder):
    texts = [{"user": "What?", "assistant": "red", "source": "cocoqa"}] * 2
    rows = [{"images": [PICTURE], "texts": texts}] * 2
    write_parquet(folder / "the_cauldron" / "cocoqa" / "train-00000-of-00002-693889e96f1.parquet", rows)


def qwen_vl(folder):
    media(folder, "images/1.png", RED)
    text = "Picture 1: <img>1.png</img>\nWhat?"
    turns = [{"from": "user", "value": text}, {"from": "assistant", "value": "<ref>it</ref> is red"}]
    dump_json(folder / "qwen_vl.json", [{"id": "identity_0", "conversations": turns}])


def openai(folder):
    media(folder, "images/1.png", RED)
    parts = [{"type": "image_url", "image_url": {"url": "1.png"}}, {"type": "text", "text": "What?"}]
    write_jsonl(folder / "chat.jsonl", [{**conversation(parts, "red"), "tools": []}])


def llava_video(folder):
    media(folder, "videos/academic/1.mp4", FILM)
    (folder / "LLaVA-Video-178K" / "0_30_s_academic_v0_1").mkdir(parents=True)
    line = llava("<image>\nWhat?", "red", id="1", data_source="0_30_s_academic_v0_1", video="academic/1.mp4")
    dump_json(
        folder / "LLaVA-Video-178K" / "0_30_s_academic_v0_1" / "0_30_s_academic_oe_v0_1_qa_processed.json", [line]
    )


def sharegpt4video(folder):
    media(folder, "videos/pexels/1.mp4", FILM)
    captions = [{"idx": "1", "content": "its begin"}, {"idx": "-1", "content": "red"}]
    line = {"video_id": "1", "video_path": "pexels/1.mp4", "timestamp": ["0", "2"], "keyframe": [0, 60]}
    write_jsonl(folder / "sharegpt4video_40k.jsonl", [{**line, "captions": captions, "zip_folder": "pexels_1.zip"}])


def finevideo(folder):
    metadata = {"description": "red", "fps": 25.0, "qAndA": [{"answer": "red", "question": "What?"}] * 5}
    row = {"mp4": FILM, "json": {"content_metadata": metadata, "content_parent_category": "Sports"}}
    write_parquet(folder / "finevideo" / "data" / "train-00000-of-01357.parquet", [row], 1)


def cc3m(folder):
    (folder / "cc3m").mkdir()
    about = '{"caption": "red", "url": "http://x.org/1.jpg", "status": "success", "exif": "{}"}'
    write_tar(folder / "cc3m" / "00000.tar", [("000.jpg", RED), ("000.json", about), ("000.txt", "red")])


MAKERS = {
    "Long-VITA-Training-Data (JSONL)": (long_vita, 2, 1),
    "LLaVA-1.5, ShareGPT4V, ALLaVA (JSON)": (llava_15, 2, 1),
    "LLaVA-OneVision (Parquet)": (llava_onevision, 2, 1),
    "the Cauldron (Parquet)": (cauldron, 2, 2),
    "Qwen-VL (JSON with `<img>` in the text)": (qwen_vl, 1, 1),
    "messages of OpenAI or TRL (JSONL, Parquet)": (openai, 1, 1),
    "LLaVA-Video-178K (JSON)": (llava_video, 1, 1),
    "ShareGPT4Video, captions (JSONL)": (sharegpt4video, 1, 1),
    "FineVideo, questions (Parquet)": (finevideo, 1, 1),
    "FineVideo, descriptions (Parquet)": (finevideo, 1, 1),
    "CC3M (WebDataset)": (cc3m, 1, 1),
}
"""For each row of the page: what makes small files, and their number of samples and of media."""


def test_every_row_of_the_page_is_tested():
    assert set(page_rows()) == set(MAKERS)


@pytest.mark.parametrize("name", MAKERS)
def test_a_public_data_set(name, tmp_path):
    make, samples, files = MAKERS[name]
    make(tmp_path)
    dataset = DatasetConfig(**page_rows()[name])
    found = [
        sample
        for entry in dataset.data_paths
        for path in filter(remote.exists, files_of_entry(str(tmp_path), str(tmp_path / entry)))
        for _, sample in read_samples(path, dataset.format, FormatOptions.of(dataset))
    ]
    assert all(isinstance(sample, Sample) for sample in found), found
    contents = [
        read_bytes(resolve(ref, tmp_path / (dataset.media_root or "")))
        for sample in found
        for ref in (*sample.images, *sample.videos)
    ]
    assert (len(found), len(contents), set(contents) <= {RED, FILM}) == (samples, files, True)
    assert all("red" in sample.turns[-1].text for sample in found)
    assert all(sample.marks == ("<image>",) for sample in found if sample.images)
    assert all("<video>" in sample.turns[0].text for sample in found if sample.videos)
