"""Generation with a built model: prompts in, tokens or text out, the KV cache kept between turns of a conversation."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from torch import Tensor

from longvita.config.schema import Config
from longvita.data.media.item import MediaSource
from longvita.data.tokenizer import LongVITATokenizer
from longvita.inference.decode import decode
from longvita.inference.detokenizer import StreamingDetokenizer
from longvita.inference.frame_attention import FrameWatch
from longvita.inference.kv_memory import check_cache
from longvita.inference.limits import LengthError, check_max_seq_len, room_for
from longvita.inference.prefill import prefill
from longvita.inference.prompt import Prompt, TensorTiles
from longvita.inference.prompt_cache import Document, Documents
from longvita.inference.prompt_encoder import PromptEncoder
from longvita.inference.sampling import Sampler, Sampling
from longvita.inference.stage import PipelineStage
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups


class Engine:
    """Answers one prompt at a time. Every rank of the replica makes the same calls and gets the same tokens.

    A prompt that begins as one of the last did (its turns, pictures and answers) is prefilled from the first token that
    differs; see Documents.

    Args:
        models: the chunks that `build_model` returned; one, since the interleaved schedule is for training.
        config: the run's config; `inference` holds the limits.
        tokenizer: the model's tokenizer; None where only tokens go in and out.
    """

    def __init__(
        self,
        models: list[LongVITA],
        config: Config,
        tokenizer: LongVITATokenizer | None,
        groups: ParallelGroups,
        platform: Any,
    ):
        if len(models) != 1:
            raise ValueError(
                f"layout.virtual_pipeline is {len(models)}, but generation runs one chunk per stage; set it to 1"
            )
        check_max_seq_len(config)
        self.config, self.tokenizer, self.groups, self.platform = config, tokenizer, groups, platform
        self.stage = PipelineStage(models[0], config, groups, platform)
        inference, tokens_per_tile = config.inference, config.model.tokens_per_tile
        self.documents = Documents(inference.kept_documents, inference.max_seq_len, groups.cp_size, tokens_per_tile)
        self._encoder = PromptEncoder(config, tokenizer) if tokenizer is not None else None

    def reset(self) -> None:
        """Forgets all prompts and answers and frees their keys and values."""
        self.documents.clear()

    def encode(
        self, messages: Sequence[Any], images: Sequence[MediaSource] = (), videos: Sequence[str | os.PathLike] = ()
    ) -> Prompt:
        """The prompt of {"role", "content"} messages; see PromptEncoder.encode for what it raises."""
        return self.encoder.encode(messages, images, videos)

    @property
    def encoder(self) -> PromptEncoder:
        """What makes prompts for this model. Raises ValueError for an engine without a tokenizer."""
        if self._encoder is None:
            raise ValueError("the engine was built without a tokenizer and takes tokens only")
        return self._encoder

    def generate(
        self,
        messages: Sequence[Any],
        images: Sequence[MediaSource] = (),
        videos: Sequence[str | os.PathLike] = (),
        sampling: Sampling | None = None,
    ) -> Iterator[str]:
        """Yields the answer to a conversation in pieces of text as they come.

        images: paths or pictures, one for each `<image>` in the messages; videos: paths, one for each `<video>`.
        sampling: the config's when None. Raises what `encode` raises before any work, TileError when a tile cannot be
        decoded. Every rank must take all pieces, or stop after the same one.
        """
        yield from self.answer(self.encode(messages, images, videos), sampling)

    def answer(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        progress: Callable[[int], None] | None = None,
        watch: FrameWatch | None = None,
    ) -> Iterator[str]:
        """`generate` for an encoded prompt; `progress` and `watch` as for `stream`.

        The answer ends at `<|im_end|>` or `<|endoftext|>`, which it leaves out.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ValueError("the engine was built without a tokenizer and takes tokens only")
        sampling = sampling or Sampling.from_config(self.config.inference, self.config.seed)
        stop_ids = {tokenizer.end_of_turn, tokenizer.padding}
        text = StreamingDetokenizer(lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True))
        for token in self.stream(prompt, sampling, stop_ids, progress, watch):
            if token not in stop_ids and (piece := text.add(token)):
                yield piece
        if piece := text.flush():
            yield piece

    def generate_tokens(
        self, input_ids: Tensor | Sequence[int], tiles: Tensor, tile_starts: Tensor | Sequence[int], max_new_tokens: int
    ) -> list[int]:
        """The `max_new_tokens` greedy tokens after a prompt, with no stop token and nothing reused.

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
        watch: FrameWatch | None = None,
    ) -> Iterator[int]:
        """Yields the tokens after a prompt as they come, a stop token included.

        Raises LengthError before any work for a prompt that leaves no room in inference.max_seq_len or in memory, see
        `room_for` and `check_cache`.

        `progress` is called with the tokens prefilled so far. `watch` sees what the answer's tokens, and the prompt's
        last, attend to. The consumers on all ranks must take equally many tokens.
        """
        limit = min(sampling.max_new_tokens, room_for(len(prompt), self.config))
        document = self._begin(prompt, limit)
        try:
            cache, chunk_size = document.cache, self.config.inference.prefill_chunk_size
            tokens_per_tile = self.config.model.tokens_per_tile
            logits = prefill(self.stage, cache, prompt, tokens_per_tile, chunk_size, progress, watch)
            for token in decode(self.stage, cache, logits, Sampler(sampling), limit, stop_ids):
                document.tokens.append(token)
                yield token
        finally:
            document.cache.watch = None

    def _begin(self, prompt: Prompt, new_tokens: int) -> Document:
        """The document of a prompt, for which there is room. Raises LengthError where there is none."""
        document = self.documents.begin(prompt)
        try:
            room = self.documents.room()
            dropped = check_cache(prompt, new_tokens, room, self.config, self.groups, self.platform)
        except LengthError:
            self.documents.give_up()
            raise
        self.documents.settle(dropped)
        return document

    def attended(self, prompt: Prompt, watch: FrameWatch) -> Tensor:
        """The share [n] of attention that each tile of the prompt got, once its answer has come; on every rank.

        Raises ValueError where no prompt was answered.
        """
        document, tokens_per_tile = self.documents.current, self.config.model.tokens_per_tile
        if document is None:
            raise ValueError("nothing was asked since the engine was reset")
        positions = document.cache.positions()
        return watch.shares(positions, prompt.tile_starts, tokens_per_tile, self.groups, self.stage.device)


def _numbers(values: Tensor | Sequence[int]) -> list[int]:
    return values.flatten().tolist() if isinstance(values, Tensor) else list(values)
