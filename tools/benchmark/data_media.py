"""Decoding of pictures and videos compared with the published code: float tiles in a torch DataLoader, OpenCV frames.

The part of data.py on pictures and videos:

`loader_over_naive`: samples per second, with one JPEG of 640 to 2,000 pixels each, as float32 tiles in the training
process: our Loader divided by a DataLoader with the same number of workers. `short_video_over_naive`: the same ratio
for clips of 10 seconds at one frame per second. `video_seconds_over_naive`: 64 frames of an hour of film (key frames
250 frames apart) as tiles: seconds of OpenCV, which reads and converts every frame up to the last one, divided by ours.
`decode_redundancy`: four ranks split that hour at one frame per second; the frames that they decode divided by those
that one process decodes for all. The loaders alternate, and the results are medians over the rounds. The tiles of both
sides are compared before the measurement, and frames of the film with those of one pass through it; any different bit
is an error.
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
from longvita.data.media.item import MediaSettings, PictureFacts, PictureItem, VideoItem, decode_tiles
from longvita.data.media.packet_scan import read_packet_table
from longvita.data.media.pictures.picture_file import probe_picture
from longvita.data.media.video import probe_video, selected_frames
from longvita.parallel.tile_sharing import assign_tiles

WORKERS = 2
ROUNDS = 3
CHECKED = 6
"""Sequences whose tiles are compared."""
AHEAD = 2 * WORKERS
"""Sequences that both loaders prefetch, and that pass before the measurement."""
RANKS = 4


def picture_figures(folder: Path) -> dict[str, float]:
    """`loader_over_naive` and its two rates."""
    config = write_config(folder, "images", write_pictures(folder, 120), 16384, WORKERS)
    ratio, ours, naive = compare_rates(config, 24)
    rates = {"loader_over_naive": ratio, "pictures_per_second": ours, "naive_pictures_per_second": naive}
    return rates | reduced_figures(folder)


def video_figures(folder: Path) -> dict[str, float]:
    """`short_video_over_naive`, `video_seconds_over_naive` and `decode_redundancy`, with their rates."""
    config = write_config(folder, "videos", write_clips(folder, 32), 8192, WORKERS)
    ratio, ours, naive = compare_rates(config, 12)
    film = write_film(folder)
    return {
        "short_video_over_naive": ratio,
        "clips_per_second": ours,
        "naive_clips_per_second": naive,
        **sparse_figures(film),
        "decode_redundancy": redundancy(film),
    }


def compare_rates(config: Config, count: int) -> tuple[float, float, float]:
    """Samples per second, as (ours / theirs, ours, theirs): medians over rounds of `count` sequences."""
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
    """The effect of data.reduced_jpeg.

    `reduced_jpeg_difference`: mean difference of a value in 0 to 255, over photographs with such small tiles that they
    are read at a half to an eighth of their size. `reduced_jpeg_speedup`: seconds of a photograph of 12 million pixels,
    as tiles of 448, without the setting divided by those with it.
    """
    differences = []
    for number, name in enumerate(PICTURES):
        full, reduced = both_ways(write_picture(folder / f"photograph{number}.jpg", photograph(name)), 56)
        differences.append(float(np.abs(full.tiles.astype(int) - reduced.tiles).mean()))
    large = write_picture(folder / "large.jpg", photograph("coffee").resize((4000, 3000)))
    rounds = [both_ways(large, 448) for _ in range(ROUNDS)]
    return {
        "reduced_jpeg_difference": statistics.mean(differences),
        "reduced_jpeg_speedup": statistics.median(full.seconds / reduced.seconds for full, reduced in rounds),
    }


@dataclass(frozen=True)
class DecodedPicture:
    """The tiles of a picture and the seconds of their decoding."""

    tiles: np.ndarray
    """uint8 [n, S, S, 3]."""
    seconds: float


def both_ways(path: Path, image_size: int) -> tuple[DecodedPicture, DecodedPicture]:
    """A picture read at full size and at a reduced size."""
    facts = PictureFacts(*probe_picture(path))

    def decode(reduced: bool) -> DecodedPicture:
        settings = MediaSettings(image_size=image_size, reduced_jpeg=reduced)
        start = time.perf_counter()
        tiles = decode_tiles([PictureItem(path, facts)], settings, 1, range(facts.grid(settings).num_tiles))
        return DecodedPicture(tiles, time.perf_counter() - start)

    return decode(False), decode(True)


def our_loader(config: Config, count: int) -> tuple[Loader, list[list[Path]]]:
    """A new loader, and the files of its first `count` sequences."""
    loader = build_loader(config, LoaderRanks())
    (file,) = loader.catalog.files
    samples = [json.loads(line) for line in Path(file.path).read_text(encoding="utf-8").splitlines()]
    paths = [Path(file.settings.media_root) / sample[file.source][0] for sample in samples]
    lines = [[loader.catalog.request(sample).place.line for sample in loader.stream.sequence(k)] for k in range(count)]
    return loader, [[paths[line - 1] for line in sequence] for sequence in lines]


def rate(batches: Iterator[torch.Tensor], files: Sequence[Sequence[Path]]) -> float:
    """Samples per second in the training process, after the prefetched sequences."""
    for _ in range(AHEAD):
        next(batches)
    start = time.perf_counter()
    for _ in files[AHEAD:]:
        next(batches)
    return sum(map(len, files[AHEAD:])) / (time.perf_counter() - start)


def compare(config: Config) -> None:
    """Raise RuntimeError unless our tiles equal the naive loader's bitwise."""
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
        unknown = film.with_name(f"{number}-{film.name}")  # A file whose packets have not been read.
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
    """Frames that four ranks decode in total for one frame per second of the film, divided by those of one rank."""
    facts = probe_video(film)
    settings = MediaSettings(image_size=56, max_num_frames=4096)
    frames = selected_frames(facts, settings.max_fps, settings.max_num_frames)
    owners = assign_tiles(len(frames), RANKS).numpy()
    read_packet_table(film, settings.stall_seconds, lambda: None)  # The other beats are frames.

    def read(wanted: Sequence[int]) -> tuple[int, np.ndarray]:
        beats: list[None] = []
        items = [VideoItem(film, facts)]
        tiles = decode_tiles(items, settings, settings.max_num_frames, wanted, lambda: beats.append(None))
        return len(beats), tiles

    shards = [read(np.flatnonzero(owners == rank).tolist()) for rank in range(RANKS)]
    alone, tiles = read(range(len(frames)))
    require_equal(np.concatenate([shard for _, shard in shards]), tiles)
    require_equal(tiles, one_pass(film, frames, settings))
    return sum(count for count, _ in shards) / alone


def one_pass(film: Path, frames: Sequence[int], settings: MediaSettings) -> np.ndarray:
    """The frames of these numbers from a pass that decodes all frames, uint8 [k, S, S, 3]."""
    wanted, tiles = set(frames), []
    with av.open(str(film)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
                tiles.append(np.asarray(plain_tile(picture, settings.image_size)))
    return np.stack(tiles)


def require_equal(ours: np.ndarray, plain: np.ndarray) -> None:
    """Raise RuntimeError unless tiles are bitwise equal."""
    if not np.array_equal(ours, plain):
        rows = np.flatnonzero((ours != plain).any(axis=(1, 2, 3))) if ours.shape == plain.shape else "their number"
        raise RuntimeError(f"frames differ from those of one pass through the film: {rows}")
