"""Real pictures and clips, a tiny tokenizer, data files and configs for the data tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from skimage import data as skimage_data
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from longvita.config.schema import Config
from longvita.data.loader import Loader
from longvita.data.packing.plan_cache import plan_epoch
from tests.tiny import tiny_config

VOCABULARY = 512


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer with one token a byte and ChatML's control tokens, without Long-VITA's added ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def picture(name: str = "chelsea") -> Image.Image:
    """A photograph that scikit-image ships in its wheel."""
    return Image.fromarray(getattr(skimage_data, name)()).convert("RGB")


def clip_frames(count: int, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    """Frames of a camera that moves over a photograph; each has different content."""
    photograph = picture("astronaut")
    frames = []
    for number in range(count):
        left, top = 3 * number % 300, 2 * number % 300
        frames.append(np.asarray(photograph.crop((left, top, left + 200, top + 150)).resize(size)))
    return frames


def write_video(path: Path, count: int = 20, fps: int = 10, size: tuple[int, int] = (64, 48)) -> Path:
    """A real .mp4 whose header comes first, so that a cut file still opens."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for pixels in clip_frames(count, size):
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def cut_file(path: Path, target: Path, fraction: float = 0.5) -> Path:
    """The first part of a file."""
    content = path.read_bytes()
    target.write_bytes(content[: int(len(content) * fraction)])
    return target


def write_audio(path: Path) -> Path:
    """An .mp4 without a video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.rate = 44100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def conversation(question: str | list, answer: str = "yes", **media: Sequence[str | None]) -> dict:
    """A sample of one question and its answer."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **{key: list(value) for key, value in media.items()}}


def write_jsonl(path: Path, samples: Sequence[Any]) -> Path:
    """One line for each sample; a string is written unchanged."""
    lines = [sample if isinstance(sample, str) else json.dumps(sample) for sample in samples]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def write_media(folder: Path) -> None:
    """one.png (one tile at any grid limit of 1), wide.jpg, clip.mp4, a folder of frames, and broken files."""
    folder.mkdir(parents=True, exist_ok=True)
    picture().resize((60, 60)).save(folder / "one.png")
    picture("coffee").resize((120, 40)).save(folder / "wide.jpg")
    write_video(folder / "clip.mp4", count=40, fps=4)
    (folder / "frames").mkdir()
    for number, pixels in enumerate(clip_frames(11), start=1):
        Image.fromarray(pixels).save(folder / "frames" / f"frame{number}.png")
    cut_file(folder / "clip.mp4", folder / "cut.mp4", 0.6)
    cut_file(folder / "wide.jpg", folder / "cut.jpg", 0.5)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "text.png").write_text("this is no picture\n" * 50)
    (folder / "empty").mkdir()
    write_audio(folder / "audio.mp4")


def data_config(folder: Path, sources: dict[str, Any], **data: Any) -> Config:
    """A config of the tiny model (tiles of 28 pixels, one token each) over files in `folder`."""
    values = {
        "tokenizer": str(folder / "tokenizer"),
        "dataset": sources,
        "data_root": str(folder),
        "media_root": str(folder / "media"),
        "sequence_length": 256,
        "max_num_tiles": 4,
        "max_num_frames": 8,
        "num_workers": 0,
        "index_processes": 0,
        **data,
    }
    return tiny_config(
        output=str(folder / "run"),
        data=values,
        model={"language": {"vocab_size": VOCABULARY}},
        training={"precision": "fp32"},
    )


def sequences_per_epoch(loader: Loader) -> int:
    """Sequences of the first epoch of a loader's stream."""
    return plan_epoch(loader.catalog, loader.config, 0).num_sequences
