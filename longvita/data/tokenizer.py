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

GROUNDING_TOKENS = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
"""Added tokens that users write in a question to refer to a region of a picture."""
ADDED_TOKENS = (
    *("<img>", "</img>", "<IMG_CONTEXT>", "<vid>", "</vid>", "<VID_CONTEXT>", "<patch>", "</patch>", "<PATCH_CONTEXT>"),
    *GROUNDING_TOKENS,
    *("<image>", "<video>"),
)
"""The tokens that Long-VITA adds to those of Qwen2.5, in the order of their ids."""
START_OF_TURN, END_OF_TURN, PADDING = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


class TokenizerError(UserError, ValueError):
    """A folder without a usable tokenizer."""


class LongVITATokenizer:
    """Converts text to ids and back. Wraps the fast backend only, which is sent to workers as one JSON string."""

    def __init__(self, backend: Tokenizer):
        """Append the added tokens that `backend` lacks; it must have `<|im_start|>` and `<|im_end|>` of ChatML."""
        missing = [token for token in (START_OF_TURN, END_OF_TURN) if backend.token_to_id(token) is None]
        if missing:
            raise TokenizerError(
                f"the tokenizer has no {' and no '.join(missing)}; Long-VITA's chat template needs a ChatML tokenizer "
                "such as Qwen2.5's"
            )
        backend.add_special_tokens(_absent_tokens(backend))
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
        """Restore what `to_json` returned."""
        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        """Return the tokenizer as the text of a tokenizer.json."""
        return self.backend.to_str()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the tokenizer: equal if all ids are."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; the model's vocabulary needs at least as many rows."""
        return max(self.backend.get_vocab_size(), max(self.backend.get_added_tokens_decoder(), default=-1) + 1)

    def id_of(self, token: str) -> int:
        """Return the id of a token. Raises KeyError if there is none."""
        number = self.backend.token_to_id(token)
        if number is None:
            raise KeyError(f"the tokenizer has no token {token!r}")
        return number

    def encode(self, text: str) -> list[int]:
        """Tokenize `text`; names of special tokens in it become those tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_untrusted(self, text: str) -> list[int]:
        """Tokenize text that a user typed: names of control tokens in it stay text, grounding tokens work.

        The name of a control token is tokenized in two pieces, so it decodes to the same characters.
        """
        ids: list[int] = []
        position = 0
        for match in self._control.finditer(text):
            ids += self.encode(text[position : match.start() + 1])
            position = match.start() + 1
        return ids + self.encode(text[position:])

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)


def load_tokenizer(folder: str | Path) -> LongVITATokenizer:
    """Load the tokenizer of a Hugging Face folder; the added tokens that it lacks are appended in order.

    Raises TokenizerError if there is no such folder or it has no fast ChatML tokenizer.
    """
    return LongVITATokenizer(load_transformers_tokenizer(folder).backend_tokenizer)


def load_transformers_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer as an object of transformers, with the added tokens, to be saved with exported weights."""
    from transformers import AutoTokenizer

    if not str(folder):
        raise TokenizerError("data.tokenizer is empty; fix: name the folder of a Qwen2.5 or Long-VITA tokenizer")
    if not Path(folder).is_dir():
        raise TokenizerError(f"tokenizer folder {folder} does not exist")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise TokenizerError(f"{folder} has no tokenizer that transformers can load: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(f"{folder} has a tokenizer without a fast version; a tokenizer.json is required")
    tokenizer.add_tokens(_absent_tokens(tokenizer.backend_tokenizer), special_tokens=True)
    return tokenizer


def _absent_tokens(backend: Tokenizer) -> list[AddedToken]:
    absent = [token for token in ADDED_TOKENS if backend.token_to_id(token) is None]
    return [AddedToken(token, special=True, normalized=False) for token in absent]
