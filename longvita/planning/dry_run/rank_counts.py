"""What a dry run counts on a rank, as plain values that one process sends to another."""

from __future__ import annotations

from dataclasses import dataclass, field

from longvita.planning.batch_contents import BatchContents

MICRO_BATCH_PHASES = ("forward", "backward", "pipeline")
"""Phases of each micro batch; the other phases come once a step."""


@dataclass(frozen=True, order=True)
class Collective:
    """One kind of collective call or message."""

    phase: str
    """forward, backward (recomputed layers included), pipeline (messages between stages), gradients, optimizer, step
    (figures of the log)."""
    kind: str
    """all-reduce, all-gather, reduce-scatter, all-to-all, broadcast, send, receive ..."""
    group: str
    """Axes of the layout that the group spans."""
    size: int
    """Processes of the group."""
    bytes: int
    """Bytes that this rank puts in, or receives."""


@dataclass(frozen=True)
class ActivationBytes:
    """Memory of a micro batch on a rank, without weights, gradients and optimizer state."""

    contents: BatchContents
    saved: int
    """Bytes that autograd keeps for the backward pass of one micro batch, on device and host; with offloaded layer
    inputs, only those outside of the decoder's layers."""
    peak: int
    """Bytes at the highest moment of the forward and backward pass of one micro batch."""
    offloaded: int
    """Bytes of layer inputs that are offloaded from the device's memory."""
    waiting: int
    """Micro batches that wait for their backward pass, `saved` bytes each, without the current one."""

    @property
    def total(self) -> int:
        """Bytes at the highest moment, with the micro batches that wait."""
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
    """Bytes of weights, including the padding of Megatron's buffers."""
    gradient_bytes: int
    """Bytes of main gradients, including padding."""
    optimizer_bytes: int
    """Bytes of Adam's moments and, with bf16, the main weights."""
    activations: tuple[ActivationBytes, ...]
    """One entry for each of the worst contents."""
    collectives: dict[Collective, int]
    """Number of calls in one optimizer step, all of whose micro batches have the first of the worst contents."""
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    """Global shape of each weight that this rank would load, by its name in a training checkpoint."""
    seconds: float = 0.0


@dataclass(frozen=True)
class RankFailure:
    """A rank whose dry run raised an error."""

    rank: int
    """-1 for an error of the process itself."""
    text: str
    """Type and message of the error."""
    trace: str
    """Traceback of the error, or output of the process."""


@dataclass(frozen=True)
class DryRunOutcome:
    """Result of the process of the ranks."""

    ranks: tuple[RankDryRun, ...] = ()
    failures: tuple[RankFailure, ...] = ()
    peak_bytes: int = 0
    """Highest memory of the process."""
