"""One optimizer step, and one evaluation, through megatron-core's pipeline schedules.

The loss is the sum over the global batch divided by its loss tokens: the schedule sums, the gradients are divided once
at the end (`calculate_per_token_loss`), so the split into micro batches, stages and replicas changes nothing.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from longvita.checkpoint.training_state import TrainingState
from longvita.config.flops import Workload
from longvita.data.batch import LocalBatch
from longvita.errors import UserError
from longvita.model.feature_exchange import sum_vision_gradients
from longvita.model.long_vita import TokenLosses
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.sequence_layout import schedule_length
from longvita.processes import EXIT_FAILED


class TrainingError(UserError, RuntimeError):
    """A run cannot continue: shapes do not fit, gradients cannot be used, or a checkpoint was not written."""

    exit_code = EXIT_FAILED


@dataclass
class LossFigures:
    """Losses of a global batch, identical on every rank."""

    loss: float
    """Mean over the loss tokens; 0 when there are none."""
    loss_tokens: int
    source_losses: dict[str, float]
    """Mean loss of each source that has loss tokens in the batch."""


@dataclass
class BatchFigures:
    """The content of a global batch, identical on every rank."""

    work: Workload
    """Documents, tiles and loss tokens, padding left out."""
    padding_tokens: int


@dataclass
class StepFigures:
    """The figures of a step, identical on every rank."""

    losses: LossFigures
    batch: BatchFigures
    grad_norm: float
    """Global gradient norm before clipping."""
    lr: float = 0.0
    """`optimizer.lr` as scheduled for the step; groups multiply it."""
    applied: bool = True
    """Whether the gradients were applied; False for a step that was skipped."""


@dataclass
class _Counter:
    """Passes this rank's micro batches to the schedule and counts their content."""

    batches: Iterator[LocalBatch]
    expected_tokens: int
    fixed_shape: bool
    work: Workload = field(default_factory=Workload)
    padding_tokens: int = 0

    def __iter__(self) -> Iterator[LocalBatch]:
        for batch in self.batches:
            tokens = batch.input_ids.shape[1]
            if self.fixed_shape and tokens != self.expected_tokens:
                raise TrainingError(
                    f"a micro batch of {tokens} tokens after one of {self.expected_tokens}: pipeline stages exchange "
                    "one shape; pack to equal lengths or use pipeline_parallel 1"
                )
            lengths = batch.cu_seqlens.diff().tolist()
            # Padding is a separate document without a source.
            documents = [n for n, source in zip(lengths, batch.document_sources, strict=True) if source]
            self.work.tokens += sum(documents)
            self.work.attention_pairs += sum(n * (n + 1) // 2 for n in documents)
            self.work.tiles += len(batch.tile_starts)
            self.padding_tokens += batch.padding_tokens
            yield batch


class TimedBatches(Iterator[LocalBatch]):
    """Yields micro batches and sums the time that each one took to arrive."""

    def __init__(
        self,
        batches: Iterator[LocalBatch],
        phase: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """phase: called with the name of the phase that begins, "data" or "compute"."""
        self._batches, self._phase, self._clock = batches, phase, clock
        self._seconds = 0.0

    def __next__(self) -> LocalBatch:
        start = self._clock()
        self._phase("data")
        try:
            return next(self._batches)
        finally:
            self._phase("compute")
            self._seconds += self._clock() - start

    def take_seconds(self, device: torch.device) -> float:
        """Seconds waited since the last call, on the rank that waited longest: the other ranks wait for it.

        A collective over the whole world.
        """
        longest = torch.tensor(self._seconds, dtype=torch.float32, device=device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        self._seconds = 0.0
        return float(longest)


def require_finite(figures: StepFigures) -> bool:
    """Accept a step. Raises TrainingError if its loss or gradient norm is not finite."""
    if not (math.isfinite(figures.losses.loss) and math.isfinite(figures.grad_norm)):
        raise TrainingError(f"the loss of a step is {figures.losses.loss}, its gradient norm {figures.grad_norm}")
    return True


def train_step(
    state: TrainingState,
    batches: Iterable[LocalBatch],
    micro_batches: int | None = None,
    accept: Callable[[StepFigures], bool] = require_finite,
) -> StepFigures:
    """Forward and backward passes over this replica's micro batches, then one clipped optimizer step.

    A global batch without a loss token, as when none of its files can be read, changes no weight.

    `batches` yields this rank's micro batches, on any device; `micro_batches` of them are used (state.micro_batches
    when absent). `accept` decides, on every rank alike, whether the gradients are applied; a step that it refuses
    keeps its batch and its place in the schedule. Where it raises, the state is that before the step. A collective
    over the whole world.
    """
    for chunk in state.chunks:
        chunk.train()
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()
    sources = tuple(state.config.data.dataset)
    losses, batch = forward_backward(state, batches, micro_batches or state.micro_batches, sources)
    figures = StepFigures(losses, batch, _gradient_norm(state) if losses.loss_tokens else 0.0)
    figures.applied = accept(figures)
    state.scheduler.step(1)
    figures.lr = state.scheduler.get_lr({})
    if figures.applied and losses.loss_tokens:
        state.optimizer.step()
    state.iteration += 1
    return figures


def pass_over_step(state: TrainingState, batches: Iterator[LocalBatch]) -> None:
    """Take the place of a step, with its batch, without training on it."""
    for _ in range(state.micro_batches):
        next(batches)
    state.scheduler.step(1)
    state.iteration += 1


def _gradient_norm(state: TrainingState) -> float:
    """The global norm, before the optimizer changes anything; its step computes it again to clip the gradients."""
    state.optimizer.prepare_grads()
    return float(state.optimizer.get_grad_norm())


@torch.no_grad()
def evaluate(
    state: TrainingState, batches: Iterable[LocalBatch], micro_batches: int, sources: Sequence[str]
) -> tuple[LossFigures, BatchFigures]:
    """Losses of this replica's next `micro_batches` batches, without a backward pass. A collective over the world."""
    for chunk in state.chunks:
        chunk.eval()
    return forward_backward(state, batches, micro_batches, tuple(sources), forward_only=True)


def forward_backward(
    state: TrainingState,
    batches: Iterable[LocalBatch],
    micro_batches: int,
    sources: tuple[str, ...],
    forward_only: bool = False,
) -> tuple[LossFigures, BatchFigures]:
    """Run the pipeline schedule over the micro batches.

    Afterwards `main_grad` of each parameter holds the gradient of the global loss (with the distributed optimizer, the
    shard of it that this rank updates).
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise TrainingError(f"no micro batch where {micro_batches} are needed; is the data empty?")
    tokens = first.input_ids.shape[1]
    counter = _Counter(itertools.chain([first], iterator), tokens, state.groups.pp_size > 1)
    _prepare_schedule(state)
    streams = itertools.tee(itertools.islice(counter, micro_batches), len(state.chunks))
    records = get_forward_backward_func()(
        forward_step_func=partial(_forward, state, sources),
        data_iterator=list(streams),
        model=list(state.chunks),
        num_microbatches=micro_batches,
        seq_length=schedule_length(tokens, state.groups, state.config.layout.sequence_parallel),
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return _gather_figures(state, records, counter, sources)


def _prepare_schedule(state: TrainingState) -> None:
    """Set the functions that Megatron's schedules call, which they read from the chunks' configs."""
    no_sync: list[Any] = [chunk.no_sync for chunk in state.chunks]
    for model in state.models:
        settings: Any = model.config
        settings.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        settings.finalize_model_grads_func = partial(_finalize_gradients, state.groups)


def _finalize_gradients(groups: ParallelGroups, chunks: list, num_tokens: Tensor | None = None, **kwargs: Any) -> None:
    """Megatron's reductions and division by the loss tokens, then the sum over the ranks that encode the tiles."""
    finalize_model_grads(chunks, num_tokens, **kwargs)
    sum_vision_gradients(chunks, groups)


def _forward(state: TrainingState, sources: tuple[str, ...], stream: Iterator[LocalBatch], chunk: Any) -> Any:
    batch = next(stream).to(state.platform.device)
    return chunk(batch), partial(_loss, batch, sources)


def _loss(batch: LocalBatch, sources: tuple[str, ...], output: TokenLosses) -> tuple[Tensor, Tensor, dict]:
    """The values that the schedule needs from the last stage: loss to differentiate, its tokens, and a record."""
    loss, losses, positions = output
    tokens = torch.tensor(len(losses), dtype=torch.int, device=loss.device)
    record = {
        # The schedule may scale the loss in place later.
        "loss": loss.detach().clone(),
        "tokens": tokens.clone(),
        **_by_source(batch, sources, losses.detach(), positions),
    }
    return loss, tokens, record


def _by_source(batch: LocalBatch, sources: tuple[str, ...], losses: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """Sums of losses and numbers of loss tokens by source: [number of sources] each; unknown sources are left out."""
    number = {source: index for index, source in enumerate(sources)}
    numbers = [number.get(source, len(sources)) for source in batch.document_sources]
    of_document = torch.tensor(numbers, device=losses.device)
    document = torch.bucketize(positions, batch.cu_seqlens[1:].long(), right=True)
    index = of_document[document]
    sums = losses.new_zeros(len(sources) + 1).index_add_(0, index, losses)
    counts = torch.bincount(index, minlength=len(sources) + 1)
    return {"source_losses": sums[:-1], "source_tokens": counts[:-1]}


def _gather_figures(
    state: TrainingState, records: list[dict], counter: _Counter, sources: tuple[str, ...]
) -> tuple[LossFigures, BatchFigures]:
    """Sum over all ranks: losses of the last stages, the batch's content of the first ones, each once."""
    groups, device = state.groups, state.platform.device
    sums = torch.zeros(1 + len(sources), dtype=torch.float32, device=device)
    counts = torch.zeros(5 + len(sources), dtype=torch.int64, device=device)
    if groups.tp_rank == 0 and groups.cp_rank == 0 and groups.is_first_stage:
        work = counter.work
        counts[:4] = torch.tensor([work.tokens, work.attention_pairs, work.tiles, counter.padding_tokens])
    if groups.tp_rank == 0 and groups.is_last_stage:
        # Each CP rank has the losses of its own rows. Micro batches are summed in double precision, so that how many
        # there are does not change the loss.
        sums[0] = torch.stack([record["loss"] for record in records]).cpu().double().sum()
        sums[1:] = torch.stack([record["source_losses"] for record in records]).cpu().double().sum(dim=0)
        counts[4] = torch.stack([record["tokens"] for record in records]).sum()
        counts[5:] = torch.stack([record["source_tokens"] for record in records]).sum(dim=0)
    dist.all_reduce(sums)
    dist.all_reduce(counts)
    loss, *source_losses = sums.tolist()
    tokens, pairs, tiles, padding, loss_tokens, *source_tokens = counts.tolist()
    by_source = zip(sources, source_losses, source_tokens, strict=True)
    losses = LossFigures(
        loss=loss / max(loss_tokens, 1),
        loss_tokens=loss_tokens,
        source_losses={source: total / count for source, total, count in by_source if count},
    )
    work = Workload(tokens=tokens, attention_pairs=pairs, loss_tokens=loss_tokens, tiles=tiles)
    return losses, BatchFigures(work, padding)
