"""The text tokenizer: a Hugging Face tokenizer with ChatML's control tokens and Long-VITA's 17 added ones."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from longvita.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADDED_TOKENS = (
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<vid>",
    "</vid>",
    "<VID_CONTEXT>",
    "<patch>",
    "</patch>",
    "<PATCH_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    "<image>",
    "<video>",
)
"""The tokens that Long-VITA adds to Qwen2.5's, in the order of their ids."""
GROUNDING_TOKENS = frozenset(ADDED_TOKENS[9:15])
"""Added tokens that people write in a question to speak of a place in a picture."""
START_OF_TURN, END_OF_TURN, PADDING = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


class TokenizerError(UserError, ValueError):
    """A folder without a tokenizer that Long-VITA can use."""


class LongVITATokenizer:
    """Text to ids and back. Wraps the fast backend alone, so that it travels to decoding processes as one string."""

    def __init__(self, backend: Tokenizer):
        """`backend` must hold ChatML's `<|im_start|>` and `<|im_end|>`; the added tokens it lacks are appended."""
        missing = [token for token in (START_OF_TURN, END_OF_TURN) if backend.token_to_id(token) is None]
        if missing:
            raise TokenizerError(
                f"the tokenizer has no {' and no '.join(missing)}; Long-VITA's chat template needs a ChatML tokenizer "
                "such as Qwen2.5's"
            )
        absent = [token for token in ADDED_TOKENS if backend.token_to_id(token) is None]
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in absent])
        self.backend = backend
        self.start_of_turn = self.id_of(START_OF_TURN)
        self.end_of_turn = self.id_of(END_OF_TURN)
        padding = backend.token_to_id(PADDING)
        self.padding = self.end_of_turn if padding is None else padding
        control = [token.content for token in backend.get_added_tokens_decoder().values()]
        control = sorted((token for token in control if token not in GROUNDING_TOKENS), key=len, reverse=True)
        self._control = re.compile("|".join(re.escape(token) for token in control))

    @classmethod
    def from_json(cls, text: str) -> LongVITATokenizer:
        """The tokenizer that `to_json` wrote."""
        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        """The whole tokenizer as the text of a tokenizer.json."""
        return self.backend.to_str()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells it from tokenizers that give other ids."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Ids in use, added tokens included: the model's vocabulary must have at least as many rows."""
        return max(self.backend.get_vocab_size(), max(self.backend.get_added_tokens_decoder(), default=-1) + 1)

    def id_of(self, token: str) -> int:
        """Id of a token that must exist. Raises KeyError."""
        number = self.backend.token_to_id(token)
        if number is None:
            raise KeyError(f"the tokenizer has no token {token!r}")
        return number

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; the names of special tokens in it become those tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_untrusted(self, text: str) -> list[int]:
        """Ids of text that someone typed: control tokens written in it stay text, grounding tokens work.

        A control token's name is tokenized in two pieces, so that it decodes to the same characters.
        """
        ids: list[int] = []
        position = 0
        for match in self._control.finditer(text):
            ids += self.encode(text[position : match.start() + 1])
            position = match.start() + 1
        return ids + self.encode(text[position:])

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """Text of `ids`."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)


def load_tokenizer(folder: str | Path) -> LongVITATokenizer:
    """The tokenizer of a Hugging Face folder, the 17 added tokens appended in order if it lacks them.

    Raises TokenizerError if there is no such folder or if it holds no fast ChatML tokenizer.
    """
    tokenizer = load_transformers_tokenizer(folder)
    return LongVITATokenizer(tokenizer.backend_tokenizer)


def load_transformers_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The same tokenizer as an object of transformers, with the added tokens, to be saved beside exported weights."""
    from transformers import AutoTokenizer

    if not str(folder):
        raise TokenizerError("data.tokenizer is empty; name the folder of a Qwen2.5 or Long-VITA tokenizer")
    if not Path(folder).is_dir():
        raise TokenizerError(f"tokenizer folder {folder} does not exist")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise TokenizerError(f"{folder} holds no tokenizer that transformers can load: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(f"{folder} holds a tokenizer without a fast version; it needs a tokenizer.json")
    absent = [token for token in ADDED_TOKENS if tokenizer.backend_tokenizer.token_to_id(token) is None]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in absent], special_tokens=True)
    return tokenizer
