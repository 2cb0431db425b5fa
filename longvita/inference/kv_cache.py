"""Keys and values of the tokens that went through the model already, kept per layer for generation.

A pass over a chunk of t tokens calls `append` once per layer and `advance` once at its end:

    past = cache.length                      # tokens before the chunk
    k_all, v_all = cache.append(layer, k, v) # [past + t, groups, d], in each layer's core attention
    cache.advance(t)                         # the chunk is now part of the past

Until `advance` nothing of the chunk counts: an interrupted pass leaves no trace, and `advance(n)` with n < t drops the
rows at the end that only padded the chunk.

With context parallelism each rank keeps the keys and values that it computed: `rows` of them here, of `length` tokens
on all ranks together.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

if TYPE_CHECKING:
    from longvita.inference.frame_watch import FrameWatch

BLOCK_TOKENS = 256
GROWTH = 1.25


class KVCache:
    """Cached keys and values of the layers of this rank, for one sequence.

    Nothing is allocated before it is needed: a layer's buffer is created by its first `append` and grows by a quarter
    (rounded up to blocks of 256 tokens), so a limit of a million tokens costs no memory until they come. The rows of a
    group lie together, for a new token reads each group's from first to last.

    Args:
        max_length: most tokens that may be cached; `advance` raises ValueError beyond it.
        shares: context-parallel ranks that the tokens are spread over.
    """

    def __init__(self, max_length: int, shares: int = 1):
        self.max_length, self.shares = max_length, shares
        self.length = self.rows = 0
        self.watch: FrameWatch | None = None
        """Told of the attention of single tokens to what is cached, while there is one."""
        self._positions = array("q")
        self._reserved = 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def append(self, layer_number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a chunk's keys and values [t, groups, d] behind the `rows` cached ones of a layer.

        Returns views [rows + t, groups, d] of all keys and of all values so far, the chunk included. They are valid
        until the next `append` to the same layer.
        """
        end = self.rows + key.shape[0]
        keys = self._keys[layer_number] = self._room(self._keys.get(layer_number), key, end)
        values = self._values[layer_number] = self._room(self._values.get(layer_number), value, end)
        keys[:, self.rows : end] = key.transpose(0, 1)
        values[:, self.rows : end] = value.transpose(0, 1)
        return keys[:, :end].transpose(0, 1), values[:, :end].transpose(0, 1)

    def advance(self, tokens: int, positions: Sequence[int] | None = None) -> None:
        """Counts a chunk of `tokens` tokens as cached: the first rows that every layer appended.

        positions: those of this rank's tokens in the sequence, ascending, where other ranks have some; their number is
        the number of rows then.
        """
        rows = tokens if positions is None else len(positions)
        short = [layer for layer, keys in self._keys.items() if keys.shape[1] < self.rows + rows]
        if tokens < 0 or short:
            raise ValueError(f"cannot advance the KV cache by {tokens} tokens: layers {short} hold fewer")
        if self.length + tokens > self.max_length:
            raise ValueError(
                f"{self.length + tokens} tokens do not fit a KV cache of at most {self.max_length} (max_seq_len)"
            )
        self.length += tokens
        self.rows += rows
        self._positions.extend(positions or ())

    def positions(self) -> Sequence[int]:
        """Where the rows of this rank stand in the sequence."""
        return range(self.rows) if self.shares == 1 else self._positions

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens; their memory stays for the next ones."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a KV cache of {self.length} tokens to {length}")
        self.length = length
        self.rows = length if self.shares == 1 else bisect_left(self._positions, length)
        del self._positions[self.rows :]

    def reset(self) -> None:
        """Forgets everything and frees the memory."""
        self.length = self.rows = self._reserved = 0
        del self._positions[:]
        self._keys.clear()
        self._values.clear()

    def reserve(self, length: int, passes: int = 1) -> None:
        """Has the next allocation of each layer hold this rank's share of `length` tokens (at most `max_length`).

        Spread over ranks, each of the `passes` that bring the tokens may give one rank up to 2 x shares more rows.
        """
        uneven = 2 * self.shares * passes if self.shares > 1 else 0
        self._reserved = -(-min(max(length, 0), self.max_length) // self.shares) + uneven

    def allocated_bytes(self) -> int:
        """Bytes of all buffers of this rank."""
        return sum(t.numel() * t.element_size() for t in (*self._keys.values(), *self._values.values()))

    def _room(self, buffer: Tensor | None, rows: Tensor, end: int) -> Tensor:
        """`buffer`, or a larger copy of it that holds `end` rows like `rows`."""
        capacity = 0 if buffer is None else buffer.shape[1]
        if buffer is not None and end <= capacity:
            return buffer
        wanted = self._padded(max(end, int(capacity * GROWTH), self._reserved))
        grown = rows.new_empty((rows.shape[1], wanted, rows.shape[2]))
        if buffer is not None:
            grown[:, : self.rows] = buffer[:, : self.rows]
        return grown

    @staticmethod
    def _padded(length: int) -> int:
        return -(-length // BLOCK_TOKENS) * BLOCK_TOKENS


@dataclass
class CachedSeqParams(PackedSeqParams):
    """Packed-sequence parameters of one chunk of one sequence whose earlier tokens are in `kv_cache`.

    `cu_seqlens_q` and `cu_seqlens_kv` are [0, t]: the chunk alone. Core attention appends the chunk's keys and values
    to the cache and attends from query i to the keys up to `kv_cache.length + i`.
    """

    kv_cache: KVCache | None = None
