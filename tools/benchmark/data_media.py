"""Decoding pictures and videos against the published way: float tiles in a torch DataLoader, frames through OpenCV.

The part of data.py on pictures and videos:

`loader_over_naive`: samples a second, of one JPEG of 640 to 2,000 pixels each, as float32 tiles in the training
process, our Loader over a DataLoader with as many workers. `short_video_over_naive`: the same for clips of 10 seconds
at a frame a second. `video_seconds_over_naive`: 64 frames out of an hour of film (key frames 250 frames apart) as
tiles, seconds of OpenCV, which reads and converts every frame up to the last one, over ours. `decode_redundancy`: four
ranks share that hour at a frame a second; frames that they decode over those that one process decodes for all. The
loaders take turns and the figures are medians over the rounds. Tiles of both sides are compared before the clock
starts, and frames of the film with those of one plain pass through it; a bit that differs is an error.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from data_media_material import (
    PICTURES,
    photograph,
    write_clips,
    write_config,
    write_film,
    write_picture,
    write_pictures,
)
from data_media_naive import naive_loader, opencv_frames, plain_tile
from PIL import Image

from longvita.config.schema import Config
from longvita.data.loader import Loader, LoaderRanks, build_loader
from longvita.data.media.image import probe_picture
from longvita.data.media.item import MediaSettings, PictureFacts, PictureItem, VideoItem, decode_tiles
from longvita.data.media.packets import read_packet_table
from longvita.data.media.video import probe_video, selected_frames
from longvita.parallel.tile_sharing import assign_tiles

WORKERS = 2
ROUNDS = 3
CHECKED = 6
"""Sequences whose tiles are compared."""
AHEAD = 2 * WORKERS
"""Sequences that both loaders have under way, and that pass before the clock starts."""
RANKS = 4


def picture_figures(folder: Path) -> dict[str, float]:
    """`loader_over_naive`, with the rates behind it."""
    config = write_config(folder, "images", write_pictures(folder, 120), 16384, WORKERS)
    ratio, ours, naive = contest(config, 24)
    rates = {"loader_over_naive": ratio, "pictures_per_second": ours, "naive_pictures_per_second": naive}
    return rates | reduced_figures(folder)


def video_figures(folder: Path) -> dict[str, float]:
    """`short_video_over_naive`, `video_seconds_over_naive` and `decode_redundancy`, with what is behind them."""
    config = write_config(folder, "videos", write_clips(folder, 32), 8192, WORKERS)
    ratio, ours, naive = contest(config, 12)
    film = write_film(folder)
    return {
        "short_video_over_naive": ratio,
        "clips_per_second": ours,
        "naive_clips_per_second": naive,
        **sparse_figures(film),
        "decode_redundancy": redundancy(film),
    }


def contest(config: Config, count: int) -> tuple[float, float, float]:
    """Samples a second, ours over the naive loader's, ours and theirs: `count` sequences, medians over the rounds."""
    compare(config)
    rates: dict[str, list[float]] = {"ours": [], "naive": []}
    for _ in range(ROUNDS):
        loader, files = our_loader(config, AHEAD + count)
        rates["ours"].append(rate((batch.tiles for batch in loader), files))
        loader.close()
        rates["naive"].append(rate(naive_loader(files, WORKERS), files))
    ratios = [ours / naive for ours, naive in zip(rates["ours"], rates["naive"])]
    return statistics.median(ratios), statistics.median(rates["ours"]), statistics.median(rates["naive"])


def reduced_figures(folder: Path) -> dict[str, float]:
    """What data.reduced_jpeg changes.

    `reduced_jpeg_difference`: mean difference of a value, of 255, over photographs with tiles so small that they are
    read at a half to an eighth of their size. `reduced_jpeg_speedup`: seconds of a photograph of 12 million pixels, as
    tiles of 448, without it over with it.
    """
    differences = []
    for number, name in enumerate(PICTURES):
        whole, reduced = both_ways(write_picture(folder / f"photograph{number}.jpg", photograph(name)), 56)
        differences.append(float(np.abs(whole.tiles.astype(int) - reduced.tiles).mean()))
    large = write_picture(folder / "large.jpg", photograph("coffee").resize((4000, 3000)))
    rounds = [both_ways(large, 448) for _ in range(ROUNDS)]
    return {
        "reduced_jpeg_difference": statistics.mean(differences),
        "reduced_jpeg_speedup": statistics.median(whole.seconds / reduced.seconds for whole, reduced in rounds),
    }


@dataclass(frozen=True)
class Decoded:
    """The tiles of a picture and how long they took."""

    tiles: np.ndarray
    """uint8 [n, S, S, 3]."""
    seconds: float


def both_ways(path: Path, image_size: int) -> tuple[Decoded, Decoded]:
    """A picture read whole, and at a reduced size."""
    facts = PictureFacts(*probe_picture(path))

    def decode(reduced: bool) -> Decoded:
        settings = MediaSettings(image_size=image_size, reduced_jpeg=reduced)
        start = time.perf_counter()
        tiles = decode_tiles([PictureItem(path, facts)], settings, 1, range(facts.grid(settings).num_tiles))
        return Decoded(tiles, time.perf_counter() - start)

    return decode(False), decode(True)


def our_loader(config: Config, count: int) -> tuple[Loader, list[list[Path]]]:
    """A fresh loader, and the files of its first `count` sequences."""
    loader = build_loader(config, LoaderRanks())
    (file,) = loader.catalog.files
    samples = [json.loads(line) for line in Path(file.path).read_text(encoding="utf-8").splitlines()]
    paths = [Path(file.settings.media_root) / sample[file.source][0] for sample in samples]
    lines = [[loader.catalog.request(sample).place.line for sample in loader.stream.sequence(k)] for k in range(count)]
    return loader, [[paths[line - 1] for line in sequence] for sequence in lines]


def rate(batches: Iterator[torch.Tensor], files: Sequence[Sequence[Path]]) -> float:
    """Samples a second in the training process, once what was read ahead has passed."""
    for _ in range(AHEAD):
        next(batches)
    start = time.perf_counter()
    for _ in files[AHEAD:]:
        next(batches)
    return sum(map(len, files[AHEAD:])) / (time.perf_counter() - start)


def compare(config: Config) -> None:
    """Raises RuntimeError if our tiles are not the naive loader's, bit by bit."""
    loader, files = our_loader(config, CHECKED)
    for number, (batch, theirs) in enumerate(zip(loader, naive_loader(files, WORKERS))):
        if not torch.equal(batch.tiles, theirs[0]):
            raise RuntimeError(f"tiles of sequence {number} differ: {[path.name for path in files[number]]}")
    loader.close()


def sparse_figures(film: Path) -> dict[str, float]:
    """`video_seconds_over_naive` and the seconds of both sides."""
    facts, settings = probe_video(film), MediaSettings()
    frames = selected_frames(facts, settings.max_fps, settings.max_num_frames)
    seconds = []
    for number in range(ROUNDS):
        unknown = film.with_name(f"{number}-{film.name}")  # A file of which no packet has been looked at.
        unknown.symlink_to(film)
        start = time.perf_counter()
        items = [VideoItem(unknown, facts)]
        ours = decode_tiles(items, settings, settings.max_num_frames, range(len(frames)))
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    theirs = np.stack([np.asarray(plain_tile(frame)) for frame in opencv_frames(film, frames)])
    naive = time.perf_counter() - start
    require_equal(ours, theirs)
    ratio = naive / statistics.median(seconds)
    return {"video_seconds_over_naive": ratio, "film_seconds": statistics.median(seconds), "naive_film_seconds": naive}


def redundancy(film: Path) -> float:
    """Frames that four ranks decode together for a frame a second of the film, over those that one decodes alone."""
    facts = probe_video(film)
    settings = MediaSettings(image_size=56, max_num_frames=4096)
    frames = selected_frames(facts, settings.max_fps, settings.max_num_frames)
    owners = assign_tiles(len(frames), RANKS).numpy()
    read_packet_table(film, settings.stall_seconds, lambda: None)  # The rest of the beats are frames.

    def read(wanted: Sequence[int]) -> tuple[int, np.ndarray]:
        beats: list[None] = []
        items = [VideoItem(film, facts)]
        tiles = decode_tiles(items, settings, settings.max_num_frames, wanted, lambda: beats.append(None))
        return len(beats), tiles

    shares = [read(np.flatnonzero(owners == rank).tolist()) for rank in range(RANKS)]
    alone, tiles = read(range(len(frames)))
    require_equal(np.concatenate([share for _, share in shares]), tiles)
    require_equal(tiles, one_pass(film, frames, settings))
    return sum(count for count, _ in shares) / alone


def one_pass(film: Path, frames: Sequence[int], settings: MediaSettings) -> np.ndarray:
    """uint8 [k, S, S, 3]: the frames of these numbers, all others being decoded too."""
    wanted, tiles = set(frames), []
    with av.open(str(film)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
                tiles.append(np.asarray(plain_tile(picture, settings.image_size)))
    return np.stack(tiles)


def require_equal(ours: np.ndarray, plain: np.ndarray) -> None:
    """Raises RuntimeError if tiles differ in a bit."""
    if not np.array_equal(ours, plain):
        rows = np.flatnonzero((ours != plain).any(axis=(1, 2, 3))) if ours.shape == plain.shape else "their number"
        raise RuntimeError(f"frames differ from those of one pass through the film: {rows}")
