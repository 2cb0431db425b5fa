"""What a dry run counts: plain values, which one process hands to another."""

from __future__ import annotations

from dataclasses import dataclass, field

EACH_MICRO_BATCH = ("forward", "backward", "pipeline")
"""Phases that come once a micro batch; the others come once a step."""


@dataclass(frozen=True, order=True)
class Collective:
    """One kind of call."""

    phase: str
    """forward, backward (recomputed layers included), pipeline (messages between stages), gradients, optimizer, step
    (figures of the log)."""
    kind: str
    """all-reduce, all-gather, reduce-scatter, all-to-all, broadcast, send, receive ..."""
    group: str
    """Axes of the layout that the group runs along."""
    size: int
    """Processes of the group."""
    bytes: int
    """What this rank puts in (for receive: gets)."""


@dataclass(frozen=True)
class Load:
    """What one micro batch of a replica holds."""

    name: str
    tokens: int
    """Positions, a multiple of `documents`."""
    documents: int
    """Of equal length; attention is inside each."""
    tiles: int
    """Tiles and frames; each takes tokens_per_tile positions, with a marker before and after."""
    loss_tokens: int
    """Positions with loss: the last ones."""


@dataclass(frozen=True)
class ActivationBytes:
    """What a micro batch takes on a rank beside weights, gradients and optimizer state."""

    load: Load
    saved: int
    """Bytes that autograd keeps for the backward pass of one micro batch, on device and host; with offloaded layer
    inputs, of what lies outside the decoder's layers alone."""
    peak: int
    """Bytes at the highest moment of the forward and backward pass of one micro batch."""
    offloaded: int
    """Bytes of layer inputs put away outside the device's memory."""
    waiting: int
    """Micro batches that wait for their backward pass beside the present one, `saved` bytes each."""

    @property
    def total(self) -> int:
        """Bytes at the highest moment with the micro batches that wait."""
        return self.peak + self.waiting * self.saved


@dataclass(frozen=True)
class RankDryRun:
    """What was counted on one rank."""

    rank: int
    stage: int
    places: dict[str, int]
    """Rank in each of the groups tp, cp, dp, pp."""
    parameters: int
    trained: int
    parameter_bytes: int
    """Of weights, padding of Megatron's buffers included."""
    gradient_bytes: int
    """Of main gradients, padding included."""
    optimizer_bytes: int
    """Of Adam's moments and, with bf16, main weights."""
    activations: tuple[ActivationBytes, ...]
    """For each load."""
    collectives: dict[Collective, int]
    """How often each is called in one optimizer step, all micro batches of it like the first load."""
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    """Global shape of each weight that this rank would load, by its name in a training checkpoint."""
    seconds: float = 0.0
