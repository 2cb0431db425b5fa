r"""The chat template: encodes turns, pictures and videos as token ids, labels and tile positions.

ChatML without a default system message: `<|im_start|>ROLE\nTEXT<|im_end|>\n`. Role words, text and control tokens
are tokenized separately. Tokens with loss are the text of an assistant turn that has loss, its `<|im_end|>` and the
newline after it, never those of a tile.

- picture: `<img>` n x `<IMG_CONTEXT>` `</img>` for the thumbnail; if it is tiled, then for each row a newline and, for
  each tile of it, `<patch>` n x `<PATCH_CONTEXT>` `</patch>`.
- video: for each frame `<vid>` n x `<VID_CONTEXT>` `</vid>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longvita.config.schema import TILE_MARKERS
from longvita.data.media.image import Grid
from longvita.data.sample import CHAT_ROLES, IMAGE_MARK, VIDEO_MARK, Turn, check_marks, marks_of
from longvita.data.tokenizer import LongVITATokenizer

IGNORED_LABEL = -100
"""Label of a position without loss."""
ALL_MARKS = (IMAGE_MARK, VIDEO_MARK)


@dataclass(frozen=True)
class EncodedSample:
    """A sample as tokens."""

    input_ids: np.ndarray
    """[t] int64."""
    labels: np.ndarray
    """[t] int64, not shifted: labels[i] is input_ids[i] at positions with loss, else -100."""
    tile_starts: np.ndarray
    """[n] int64, position of the first token of each tile or frame, in order."""

    @property
    def num_tiles(self) -> int:
        """Number of tiles and frames."""
        return len(self.tile_starts)


def mark_order(turns: Sequence[Turn], marks: Sequence[str]) -> list[bool]:
    """Return, for each of `marks` in the text, whether it is that of a video; other marks are text."""
    return [piece == VIDEO_MARK for turn in turns for piece in _pieces(turn.text, marks) if piece in marks]


def _pieces(text: str, marks: Sequence[str]) -> list[str]:
    """Return a text cut before and after each of `marks`."""
    return re.split(f"({'|'.join(marks)})", text) if marks else [text]


class ChatTemplate:
    """Encodes conversations with one tokenizer and one number of tokens per tile."""

    def __init__(self, tokenizer: LongVITATokenizer, tokens_per_tile: int):
        self.tokenizer = tokenizer
        self.tokens_per_tile = tokens_per_tile
        self.newline = tokenizer.encode("\n")
        self._thumbnail = self._tile_block("<img>", "<IMG_CONTEXT>", "</img>")
        self._patch = self._tile_block("<patch>", "<PATCH_CONTEXT>", "</patch>")
        self._frame = self._tile_block("<vid>", "<VID_CONTEXT>", "</vid>")
        self._openings = {
            role: [tokenizer.start_of_turn, *tokenizer.encode(role), *self.newline] for role in CHAT_ROLES
        }

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a tile with its two markers."""
        return self.tokens_per_tile + TILE_MARKERS

    def picture_length(self, grid: Grid) -> int:
        """Return the tokens of a picture that is tiled by `grid`."""
        newlines = grid.rows * len(self.newline) if grid.is_tiled else 0
        return grid.num_tiles * self.tokens_per_frame + newlines

    def text_length(self, turns: Sequence[Turn], marks: Sequence[str] = ALL_MARKS) -> int:
        """Return the tokens of a conversation without its pictures and videos, which stand at `marks`."""
        control = sum(len(self._openings[turn.role]) + 1 + len(self.newline) for turn in turns)
        pieces = (piece for turn in turns for piece in _pieces(turn.text, marks)[::2] if piece)
        return control + sum(len(self.tokenizer.encode(piece)) for piece in pieces)

    def encode(self, turns: Sequence[Turn], grids: Sequence[Grid], frame_counts: Sequence[int]) -> EncodedSample:
        """Encode a training sample: `grids` of its pictures, `frame_counts` of its videos, both in order.

        Names of special tokens in the text become those tokens, and so do marks without media, as in the published
        loader.
        Raises SampleError(mark_count) if the marks do not match.
        """
        check_marks(turns, len(grids), len(frame_counts))
        return self._build(turns, grids, frame_counts).finish()

    def encode_prompt(self, turns: Sequence[Turn], grids: Sequence[Grid], frame_counts: Sequence[int]) -> EncodedSample:
        """Encode a prompt that ends where the assistant's answer begins.

        The text is untrusted: names of control tokens in it stay text, and marks are only read if pictures (or videos)
        are given. Raises SampleError(mark_count) if some are given and the marks do not match.
        """
        check_marks(turns, len(grids), len(frame_counts))
        builder = self._build(turns, grids, frame_counts, untrusted=True)
        builder.add(self._openings["assistant"])
        return builder.finish()

    def _build(
        self, turns: Sequence[Turn], grids: Sequence[Grid], frame_counts: Sequence[int], untrusted: bool = False
    ) -> _Builder:
        builder = _Builder()
        encode_text = self.tokenizer.encode_untrusted if untrusted else self.tokenizer.encode
        pictures, videos = iter(grids), iter(frame_counts)
        marks = marks_of(len(grids), len(frame_counts))
        for turn in turns:
            has_loss = turn.role == "assistant" and turn.has_loss
            builder.add(self._openings[turn.role])
            for piece in _pieces(turn.text, marks):
                if piece == IMAGE_MARK and grids:
                    self._add_picture(builder, next(pictures))
                elif piece == VIDEO_MARK and frame_counts:
                    builder.add_tiles(self._frame, next(videos))
                elif piece:
                    builder.add(encode_text(piece), loss=has_loss)
            builder.add([self.tokenizer.end_of_turn, *self.newline], loss=has_loss)
        return builder

    def _tile_block(self, start: str, context: str, end: str) -> np.ndarray:
        ids = [self.tokenizer.id_of(token) for token in (start, context, end)]
        return np.repeat(np.asarray(ids, np.int64), [1, self.tokens_per_tile, 1])

    def _add_picture(self, builder: _Builder, grid: Grid) -> None:
        builder.add_tiles(self._thumbnail, 1)
        if grid.is_tiled:
            for _ in range(grid.rows):
                builder.add(self.newline)
                builder.add_tiles(self._patch, grid.columns)


class _Builder:
    """Collects ids, labels and the positions of tiles."""

    def __init__(self) -> None:
        self.length = 0
        self.ids, self.labels, self.starts = ([np.zeros(0, np.int64)] for _ in range(3))

    def add(self, ids: Sequence[int] | np.ndarray, loss: bool = False) -> None:
        piece = np.asarray(ids, np.int64)
        self.ids.append(piece)
        self.labels.append(piece if loss else np.full_like(piece, IGNORED_LABEL))
        self.length += len(piece)

    def add_tiles(self, block: np.ndarray, count: int) -> None:
        first = self.length + 1  # The start marker precedes the tokens of the tile.
        self.starts.append(first + len(block) * np.arange(count, dtype=np.int64))
        self.add(np.tile(block, count))

    def finish(self) -> EncodedSample:
        return EncodedSample(np.concatenate(self.ids), np.concatenate(self.labels), np.concatenate(self.starts))
