"""The generation engine: prompts in, tokens or text out, with KV caches kept between turns of a conversation."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from torch import Tensor

from longvita.config.schema import Config
from longvita.data.media.item import PromptPicture
from longvita.data.tokenizer import LongVITATokenizer
from longvita.inference.detokenizer import StreamingDetokenizer
from longvita.inference.frame_attention import FrameAttention
from longvita.inference.kv_memory import check_cache
from longvita.inference.limits import LengthError, check_max_seq_len, describe_cut, room_for
from longvita.inference.prefill_decode import PipelineStage, decode, prefill
from longvita.inference.prompt import Prompt, TensorTiles
from longvita.inference.prompt_cache import CachedPrompt, PromptCache
from longvita.inference.prompt_encoder import PromptEncoder
from longvita.inference.sampling import Sampler, Sampling
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform


class Engine:
    """Answers one prompt at a time. Every rank of the replica makes the same calls and receives the same tokens.

    Where a prompt has a prefix in common with one of the last (turns, pictures and answers), prefill starts at the
    first token that differs; see PromptCache.

    Args:
        models: the chunks from `build_model`; one, because the interleaved schedule is for training.
        config: the run's config; `inference` has the limits.
        tokenizer: the model's tokenizer; None for an engine that takes and returns tokens only.
    """

    def __init__(
        self,
        models: list[LongVITA],
        config: Config,
        tokenizer: LongVITATokenizer | None,
        groups: ParallelGroups,
        platform: Platform,
    ):
        if len(models) != 1:
            raise ValueError(
                f"layout.virtual_pipeline is {len(models)}, but generation runs one chunk per stage; set it to 1"
            )
        check_max_seq_len(config)
        self.config, self.tokenizer, self.groups, self.platform = config, tokenizer, groups, platform
        self.stage = PipelineStage(models[0], config, groups, platform)
        inference, tokens_per_tile = config.inference, config.model.tokens_per_tile
        self.prompts = PromptCache(inference.cached_prompts, inference.max_seq_len, groups.cp_size, tokens_per_tile)
        self._encoder = PromptEncoder(config, tokenizer) if tokenizer is not None else None
        self.cut_off = ""
        """The limit that ended the last answer, in words; empty where the model ended it."""

    def reset(self) -> None:
        """Evict all prompts and answers and free their KV caches."""
        self.prompts.clear()

    def encode(
        self, messages: Sequence[Any], images: Sequence[PromptPicture] = (), videos: Sequence[str | os.PathLike] = ()
    ) -> Prompt:
        """Encode {"role", "content"} messages; raises what PromptEncoder.encode raises."""
        return self.encoder.encode(messages, images, videos)

    @property
    def encoder(self) -> PromptEncoder:
        """The encoder of prompts for this model. Raises ValueError for an engine without a tokenizer."""
        if self._encoder is None:
            raise ValueError("the engine was built without a tokenizer and takes tokens only")
        return self._encoder

    def answer(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        progress: Callable[[int], None] | None = None,
        observer: FrameAttention | None = None,
    ) -> Iterator[str]:
        """Yield the answer to an encoded prompt in pieces of text, as its tokens arrive; arguments as for `stream`.

        The answer ends before `<|im_end|>` or `<|endoftext|>`. sampling: the config's when None. Raises TileError when
        a tile cannot be decoded. Every rank must consume all pieces, or stop after the same one.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ValueError("the engine was built without a tokenizer and takes tokens only")
        sampling = sampling or Sampling.from_config(self.config.inference, self.config.seed)
        stop_ids = {tokenizer.end_of_turn, tokenizer.padding}
        text = StreamingDetokenizer(lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True))
        for token in self.stream(prompt, sampling, stop_ids, progress, observer):
            if token not in stop_ids and (piece := text.add(token)):
                yield piece
        if piece := text.flush():
            yield piece

    def generate_tokens(
        self, input_ids: Tensor | Sequence[int], tiles: Tensor, tile_starts: Tensor | Sequence[int], max_new_tokens: int
    ) -> list[int]:
        """Return the `max_new_tokens` greedy tokens after a prompt, without stop tokens and cached prompts.

        input_ids [t] or [1, t]; tiles [n, 3, H, W], all of them on every rank; tile_starts [n].
        """
        self.reset()
        prompt = Prompt(_numbers(input_ids), _numbers(tile_starts), TensorTiles(tiles), range(len(tiles)))
        return list(self.stream(prompt, Sampling(max_new_tokens=max_new_tokens)))

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling,
        stop_ids: Collection[int] = (),
        progress: Callable[[int], None] | None = None,
        observer: FrameAttention | None = None,
    ) -> Iterator[int]:
        """Yield the tokens after a prompt as they are generated, including a stop token.

        progress: called with the number of prefilled tokens. observer: receives the attention of the answer's tokens
        and of the prompt's last one. Consumers on all ranks must take the same number of tokens.

        Raises LengthError before any computation for a prompt that leaves no room in inference.max_seq_len or in memory
        (see `room_for` and `check_cache`).
        """
        room = room_for(len(prompt), self.config)
        limit = min(sampling.max_new_tokens, room)
        self.cut_off = ""
        current = self._start(prompt, limit)
        try:
            logits = prefill(self.stage, current.cache, prompt, self.config, progress, observer)
            tokens = decode(self.stage, current.cache, logits, Sampler(sampling), limit, stop_ids)
            for count, token in enumerate(tokens, start=1):
                current.tokens.append(token)
                if count == limit and token not in stop_ids:
                    self.cut_off = describe_cut(sampling.max_new_tokens, room, self.config)
                yield token
        finally:
            current.cache.observer = None

    def _start(self, prompt: Prompt, new_tokens: int) -> CachedPrompt:
        """Start a prompt and evict others where memory requires it. Raises LengthError where it does not fit."""
        current = self.prompts.start(prompt)
        try:
            room = self.prompts.room()
            cached = current.cache.length
            evicted = check_cache(prompt, cached, new_tokens, room, self.config, self.groups, self.platform)
        except LengthError:
            self.prompts.rollback()
            raise
        self.prompts.commit(evicted)
        return current

    def attended(self, prompt: Prompt, observer: FrameAttention) -> Tensor:
        """Return the fraction [n] of the last answer's attention that each tile of the prompt received, on every rank.

        Raises ValueError where no prompt was answered.
        """
        current, tokens_per_tile = self.prompts.current, self.config.model.tokens_per_tile
        if current is None:
            raise ValueError("no question was answered since the engine was reset")
        positions = current.cache.positions()
        return observer.shares(positions, prompt.tile_starts, tokens_per_tile, self.groups, self.stage.device)


def _numbers(values: Tensor | Sequence[int]) -> list[int]:
    return values.flatten().tolist() if isinstance(values, Tensor) else list(values)
