"""A byte-level BPE tokenizer trained on the quickstart's own text, saved in Qwen2.5's format.

It splits text into pieces as Qwen2.5 does and has the names of its control tokens, so that the folder loads as any
Qwen2 tokenizer. Training stops when every word of the task is one token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.models.qwen2 import Qwen2Tokenizer

from longvita.data.tokenizer import ADDED_TOKENS

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MAX_VOCABULARY = 1024
"""A bound on the training, which stops long before, when no pair of tokens is left to merge."""


def train_tokenizer(texts: Iterable[str], folder: Path) -> int:
    """Train on `texts` (without marks such as <image>), write the folder, and return the number of entries."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in merges), encoding="utf-8")
    specials = CONTROL_TOKENS + ADDED_TOKENS
    (folder / "tokenizer_config.json").write_text(json.dumps(_config(len(model["vocab"]), specials), indent=2) + "\n")
    return len(model["vocab"]) + len(specials)


def _config(first_id: int, specials: tuple[str, ...]) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first_id + index): {"content": token, **flags} for index, token in enumerate(specials)
        },
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def task_texts() -> list[str]:
    """Text with every word of the four stages in each of its forms."""
    from tools.quickstart import questions as q

    subjects = (*q.NAMES, *q.SUBJECTS)
    lines = ["system", "user", "assistant"]
    lines += [f"{subject}?" for subject in subjects]
    return lines + [f"{subject} {word}?" for subject in subjects for word in (*q.WORDS, "yes", "no")]
