"""Needle in a video: a picture is inserted among the frames of a film, and a question is asked that only it answers.

By the rules of V-NIAH (LongVA, arXiv 2406.16852): the film is sampled at one frame a second, the needle is inserted
before frame int(depth x frames), lengths are 200 to 3,000 frames in steps of 200, depths are in steps of 0.2, and an
answer is right when each of its tokens is the most probable one after those before it. Lengths above 3,000 are an
extension of this project, up to 4,096.

The folder holds one film (a video file, or a folder of frames) and the needles: `needles.jsonl` with "image",
"question" and "answer" in each line, or the Parquet file of the data set lmms-lab/v_niah_needles with these columns.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from longvita.config.schema import Config
from longvita.data.errors import SampleError
from longvita.data.media.image import normalise, square_tile
from longvita.data.media.item import MediaSettings, VideoItem, decode_tiles
from longvita.data.media.media_file import InlineMedia
from longvita.data.media.pictures.picture_file import open_picture
from longvita.data.media.video import VideoFacts, list_frames, probe_video, selected_frames
from longvita.data.sample import parse_turns
from longvita.data.storage.hidden import is_hidden
from longvita.errors import shorten
from longvita.evaluation.data_set_files import VIDEO_SUFFIXES, DataSetError, read_rows
from longvita.evaluation.needle_picture import draw_grid
from longvita.evaluation.task import AnswerRecord, EvaluationItem, EvaluationTask, ItemPrompt, accuracy, digest_of
from longvita.inference.limits import LengthError
from longvita.inference.media_key import MediaKey
from longvita.inference.prompt import Prompt, token_array
from longvita.inference.prompt_encoder import PromptEncoder
from longvita.inference.sampling import Sampling

if TYPE_CHECKING:
    from longvita.inference.engine import Engine

LENGTHS = tuple(range(200, 3001, 200))
DEPTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
FILM_FPS = 1.0


@dataclass(frozen=True)
class Needle:
    """A picture, and a question about it."""

    picture: Image.Image
    question: str
    answer: str


class NeedleInVideo(EvaluationTask):
    """The V-NIAH benchmark.

    Args:
        folder: film and needles.
        lengths: frames of the film that are shown, without the needle.
        depths: places of the needle, 0 (first) to 1 (last).

    Raises DataSetError for a folder without film or needles, or with a film that is too short.
    """

    name = "needle"

    def __init__(self, folder: Path, lengths: Sequence[int] = LENGTHS, depths: Sequence[float] = DEPTHS):
        wrong = [length for length in lengths if length < 1] + [depth for depth in depths if not 0 <= depth <= 1]
        if wrong or not lengths or not depths:
            raise DataSetError(f"lengths are at least 1 frame and depths from 0 to 1; given are {lengths} and {depths}")
        self.folder, self.lengths, self.depths = folder, sorted(set(lengths)), sorted(set(depths))
        self.needles = read_needles(folder)
        self.film = _find_film(folder)
        try:
            self.facts = probe_video(self.film)
        except SampleError as error:
            raise DataSetError(str(error)) from error
        frames = len(selected_frames(self.facts, FILM_FPS, seconds_of(self.facts)))
        if frames < self.lengths[-1]:
            raise DataSetError(
                f"the film {self.film} has {frames} frames at one a second, but {self.lengths[-1]} are asked for; "
                f"give a longer film, or shorter --lengths"
            )
        self._film_key = MediaKey(self.film)

    @override
    def identity(self, config: Config) -> Mapping[str, Any]:
        return {"data": str(self.folder.resolve()), "film_frames": self.facts.num_frames}

    @override
    def check(self, encoder: PromptEncoder) -> None:
        for number in range(len(self.needles)):
            self._encode(self.lengths[-1], self.depths[0], number, encoder)

    @override
    def longest(self, encoder: PromptEncoder) -> int:
        answers = (encoder.template.tokenizer.encode_untrusted(needle.answer) for needle in self.needles)
        length, depth = self.lengths[-1], self.depths[0]
        prompts = (self.prompt(length, depth, number, encoder) for number in range(len(self.needles)))
        return max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))

    @override
    def items(self) -> Sequence[EvaluationItem]:
        digests = [digest_of(n.question, n.answer, n.picture.size, n.picture.tobytes()) for n in self.needles]
        return [
            EvaluationItem(f"{length} {depth:g} {number}", digest, f"{length} {depth:g}", float(length))
            for length, depth, (number, digest) in itertools.product(self.lengths, self.depths, enumerate(digests))
        ]

    @override
    def encode(self, engine: Engine, item: EvaluationItem) -> ItemPrompt:
        length, depth, number = item.key.split()
        return self._encode(int(length), float(depth), int(number), engine.encoder)

    def _encode(self, length: int, depth: float, number: int, encoder: PromptEncoder) -> ItemPrompt:
        prompt, needle = self.prompt(length, depth, number, encoder), self.needles[number]
        answer = encoder.template.tokenizer.encode_untrusted(needle.answer)
        limit, positions = encoder.config.inference.max_seq_len, encoder.config.model.language.max_position_embeddings
        excess = len(prompt) + len(answer) - limit
        if excess > 0:
            fitting = length - -(-excess // encoder.template.tokens_per_frame)
            fix = f"--lengths up to {fitting} fit" if fitting > 0 else "no film fits"
            raise LengthError(
                f"{length} frames, a needle and its question have {len(prompt)} tokens and the answer {len(answer)}, "
                f"but --max-seq-len is {limit}; fix: {fix}" + (", or raise it" if limit < positions else "")
            )
        facts = {"length": length, "depth": depth, "needle": number, "prompt_tokens": len(prompt)}
        return ItemPrompt(prompt, facts | {"answer": needle.answer, "answer_tokens": answer})

    @override
    def ask(self, engine: Engine, item: EvaluationItem, asked: ItemPrompt) -> AnswerRecord:
        # Right if every token is the most probable one after the right ones before it: a greedy answer that ends at
        # its first wrong token.
        answer, generated = asked.facts["answer_tokens"], []
        stream = engine.stream(asked.prompt, Sampling(max_new_tokens=len(answer)))
        for token, right in zip(stream, answer, strict=False):
            generated.append(token)
            if token != right:
                break
        return {"right": generated == answer, "response": engine.encoder.template.tokenizer.decode(generated)}

    def prompt(self, length: int, depth: float, number: int, encoder: PromptEncoder) -> Prompt:
        """Encode the question after `length` frames of the film with the needle among them; no frame is decoded yet.

        Frames have the film's keys, so frames that a prompt has in common with the one before it are not encoded again.
        """
        needle, place = self.needles[number], int(depth * length)
        turns = parse_turns([{"role": "user", "content": f"<video>\n{needle.question}"}])
        encoded = encoder.template.encode_prompt(turns, [], [length + 1])
        keys: list[Any] = [(self._film_key, frame) for frame in range(length)]
        keys.insert(place, ("needle", number))
        settings = MediaSettings(encoder.settings.image_size, 1, seconds_of(self.facts), FILM_FPS)
        return Prompt(
            token_array(encoded.input_ids),
            encoded.tile_starts.tolist(),
            _FilmWithNeedle(VideoItem(self.film, self.facts), settings, needle.picture, place),
            keys,
        )

    @override
    def score(self, records: Mapping[str, AnswerRecord]) -> dict[str, Any]:
        return {
            "overall": accuracy(records.values()),
            "by_length_and_depth": self._cells(records),
            "failed": sum("error" in record for record in records.values()),
        }

    @override
    def illustrate(self, records: Mapping[str, AnswerRecord], folder: Path) -> None:
        answered = self._cells({key: record for key, record in records.items() if "error" not in record})
        rows = [[by_depth[f"{depth:g}"] for by_depth in answered.values()] for depth in self.depths]
        # Cells without an answer stay blank.
        found = [[cell["right"] / cell["asked"] if cell["asked"] else math.nan for cell in row] for row in rows]
        draw_grid(folder / "needle.png", self.lengths, self.depths, found)

    def _cells(self, records: Mapping[str, AnswerRecord]) -> dict[str, dict[str, dict[str, int]]]:
        """Numbers of right and of asked items, by length and depth."""
        cells = {
            str(length): {f"{depth:g}": {"right": 0, "asked": 0} for depth in self.depths} for length in self.lengths
        }
        for key, record in records.items():
            length, depth, _ = key.split()
            cells[length][depth]["right"] += bool(record.get("right"))
            cells[length][depth]["asked"] += 1
        return cells


class _FilmWithNeedle:
    """A TileSource: frames of the film, one a second from the first on, and the needle before frame `place`."""

    def __init__(self, film: VideoItem, settings: MediaSettings, needle: Image.Image, place: int):
        self._film, self._settings, self._needle, self._place = film, settings, needle, place

    def load(self, indices: Sequence[int]) -> Tensor:
        """Decode the tiles at `indices`: [n, 3, H, W], normalised."""
        frames = [index - (index > self._place) for index in indices if index != self._place]
        size = self._settings.image_size
        pixels = np.zeros((len(indices), size, size, 3), np.uint8)
        if frames:
            others = [row for row, index in enumerate(indices) if index != self._place]
            pixels[others] = decode_tiles([self._film], self._settings, self._settings.max_num_frames, frames)
        if self._place in indices:
            pixels[list(indices).index(self._place)] = square_tile(self._needle, size)
        return torch.from_numpy(normalise(pixels))


def read_needles(folder: Path) -> list[Needle]:
    """Read the needles of a folder. Raises DataSetError."""
    if not folder.is_dir():
        raise DataSetError(f"{folder} is not a folder; give one that holds a film and needles with --data")
    path = folder / "needles.jsonl"
    tables = [table for table in sorted(folder.glob("*.parquet")) if not is_hidden(table.name)]
    try:
        if path.is_file():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        else:
            rows = read_rows(tables, ("image", "question", "answer"))
        needles = [_needle(folder, row) for row in rows]
    except (ValueError, KeyError, TypeError, OSError, SampleError) as error:
        raise DataSetError(f"the needles of {folder} cannot be read: {type(error).__name__}: {error}") from error
    if not needles:
        raise DataSetError(f'{folder} holds no needles: no needles.jsonl of "image", "question" and "answer"')
    return needles


def _needle(folder: Path, row: Mapping[str, Any]) -> Needle:
    if isinstance(row["image"], Mapping):
        picture = open_picture(InlineMedia(row["image"]["bytes"], "a needle's picture"))
    else:
        picture = open_picture(folder / row["image"])
    question, answer = row["question"], row["answer"]
    if not (isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip()):
        given = f"{shorten(repr(question))} and {shorten(repr(answer))}"
        raise ValueError(f"a needle needs a question and an answer, this has {given}")
    return Needle(picture, question, answer)


def seconds_of(film: VideoFacts) -> int:
    """Return the frame limit at which the whole film is sampled at one frame a second, rather than more sparsely."""
    return math.ceil(film.num_frames / film.fps)


def _find_film(folder: Path) -> Path:
    entries = [path for path in sorted(folder.iterdir()) if not is_hidden(path.name)]
    films = [path for path in entries if path.suffix.lower() in VIDEO_SUFFIXES]
    films = films or [path for path in entries if path.is_dir() and list_frames(path)]
    if len(films) != 1:
        names = ", ".join(path.name for path in films) or "none"
        where = "(needles may lie next to needles.jsonl, or in a folder within a folder)"
        raise DataSetError(f"{folder} must hold one film, a video file or a folder of frames; there is {names} {where}")
    return films[0]
