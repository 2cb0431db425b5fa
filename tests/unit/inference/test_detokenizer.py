"""Streaming detokenization with a byte-level tokenizer: characters stay whole, the pieces join to the text."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models

from longvita.inference.detokenizer import StreamingDetokenizer


def decode_bytes(ids: Sequence[int]) -> str:
    """One token per byte, as the worst case of a byte-level tokenizer."""
    return bytes(ids).decode("utf-8", errors="replace")


def pieces(ids: Sequence[int]) -> list[str]:
    streaming = StreamingDetokenizer(decode_bytes)
    return [*(streaming.add(token) for token in ids), streaming.flush()]


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "長いビデオ",
        "naïve café",
        "👩‍👩‍👧‍👦 family 🇯🇵",
        "mixed 漢字 and ascii, " * 20,
        "",
        "a\ufffdb\ufffd",
    ],
)
def test_pieces_join_to_the_text_and_never_show_half_a_character(text: str) -> None:
    parts = pieces(text.encode())
    assert "".join(parts) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


def test_text_is_emitted_as_soon_as_it_is_final() -> None:
    assert pieces(b"ab") == ["a", "b", ""]
    assert pieces("é!".encode()) == ["", "é", "!", ""]


def test_invalid_bytes_are_emitted() -> None:
    generator = random.Random(3)
    for _ in range(200):
        ids = [generator.randrange(256) for _ in range(60)]
        assert "".join(pieces(ids)) == decode_bytes(ids)


def test_an_incomplete_character_is_emitted_at_the_end() -> None:
    assert pieces("é".encode()[:1]) == ["", "\ufffd"]


def test_with_the_decoder_of_a_byte_level_tokenizer() -> None:
    vocabulary = {chr(ord("Ġ") if byte == 32 else byte): byte for byte in range(33, 127)} | {
        "Ġ": 200,
        "Ã": 201,
        "©": 202,
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    streaming = StreamingDetokenizer(lambda ids: tokenizer.decode(list(ids)))
    assert [streaming.add(token) for token in (99, 97, 102, 201, 202, 200, 33)] == ["c", "a", "f", "", "é", " ", "!"]
