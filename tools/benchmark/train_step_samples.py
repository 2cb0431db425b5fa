"""Real samples for train_step.py: scikit-image's pictures with their captions, and Python's reference as text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from pydoc_data import topics

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from train_step_engines import PackedDocument

from longvita.data.chat_template import ChatTemplate
from longvita.data.media.image import Grid, tile_image
from longvita.data.sample import Turn
from longvita.data.tokenizer import LongVITATokenizer, load_tokenizer

PICTURES = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "clock", "coffee", "coins", "grass", "gravel", "horse"),
    *("hubble_deep_field", "immunohistochemistry", "retina", "rocket", "text"),
)
MIN_TOKENS, MAX_TOKENS = 100, 2000


def build_tokenizer(folder: Path, vocabulary: int) -> LongVITATokenizer:
    """A byte-level BPE of at most `vocabulary` entries (with the control tokens), trained on Python's reference."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(control) - 17,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(topics.topics.values(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    tokens = {
        str(len(model["vocab"]) + i): {"content": token, "special": True, "normalized": False}
        for i, token in enumerate(control)
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "added_tokens_decoder": tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_tokenizer(folder)


class SampleSource:
    """Endless documents of 100 to 2,000 tokens: text, one picture, several pictures and videos in turn."""

    def __init__(self, tokenizer: LongVITATokenizer, image_size: int, tokens_per_tile: int, seed: int):
        self.random = random.Random(seed)
        self.template = ChatTemplate(tokenizer, tokens_per_tile)
        self.image_size = image_size
        self.pictures = {name: _picture(name) for name in PICTURES}
        self.paragraphs = [p for text in topics.topics.values() for p in text.split("\n\n") if len(p) > 80]

    def take(self, count: int) -> list[PackedDocument]:
        """The next `count` documents, with alternating kinds."""
        kinds = (self._text, self._picture, self._pictures, self._video)
        documents: list[PackedDocument] = []
        while len(documents) < count:
            document = kinds[len(documents) % len(kinds)]()
            if MIN_TOKENS <= len(document.input_ids) <= MAX_TOKENS:
                documents.append(document)
        return documents

    def _text(self) -> PackedDocument:
        start = self.random.randrange(len(self.paragraphs) - 40)
        answer = "\n\n".join(self.paragraphs[start : start + self.random.randint(1, 24)])
        return self._document("text", f"What does the reference say after: {self.paragraphs[start - 1]}", answer, [])

    def _picture(self) -> PackedDocument:
        name = self.random.choice(PICTURES)
        picture, caption = self.pictures[name]
        paragraph = self.random.choice(self.paragraphs)
        answer = f"{caption} Beside it stands: {paragraph}"
        return self._document("picture", f"<image>\nWhat is this? {paragraph}", answer, [[picture]], max_num_tiles=12)

    def _pictures(self) -> PackedDocument:
        names = self.random.sample(PICTURES, self.random.randint(2, 5))
        question = "".join(f"Picture {i + 1}: <image>\n" for i in range(len(names))) + "Describe each picture."
        answer = "\n".join(f"Picture {i + 1}: {self.pictures[name][1]}" for i, name in enumerate(names))
        return self._document("pictures", question, answer, [[self.pictures[n][0]] for n in names], max_num_tiles=6)

    def _video(self) -> PackedDocument:
        name = self.random.choice(PICTURES)
        picture, caption = self.pictures[name]
        frames = _pan(picture, self.random.randint(8, 96))
        answer = f"The camera moves over this picture: {caption}"
        return self._document("video", "<video>\nWhat does the video show?", answer, [frames])

    def _document(
        self, kind: str, question: str, answer: str, media: list[list[Image.Image]], max_num_tiles: int = 1
    ) -> PackedDocument:
        turns = [Turn("user", question), Turn("assistant", answer)]
        if kind == "video":
            grids, counts = [], [len(media[0])]
            tiles = [tile_image(frame, 1, self.image_size).tiles for frame in media[0]]
        else:
            tiled = [tile_image(pictures[0], max_num_tiles, self.image_size) for pictures in media]
            grids, counts = [Grid(t.columns, t.rows) for t in tiled], []
            tiles = [t.tiles for t in tiled]
        encoded = self.template.encode(turns, grids, counts)
        size = self.image_size
        return PackedDocument(
            torch.from_numpy(encoded.input_ids),
            torch.from_numpy(encoded.labels),
            torch.from_numpy(encoded.tile_starts),
            torch.cat(tiles) if tiles else torch.zeros(0, 3, size, size),
            kind,
        )


def _picture(name: str) -> tuple[Image.Image, str]:
    from skimage import data

    function = getattr(data, name)
    caption = (function.__doc__ or name).strip().splitlines()[0]
    pixels = np.asarray(function())
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    return Image.fromarray(pixels).convert("RGB"), caption


def _pan(picture: Image.Image, frames: int) -> list[Image.Image]:
    """Square windows that move from the top left to the bottom right corner."""
    side = min(picture.size) // 2
    width, height = picture.size[0] - side, picture.size[1] - side
    corners = [(width * i // frames, height * i // frames) for i in range(frames)]
    return [picture.crop((x, y, x + side, y + side)) for x, y in corners]
