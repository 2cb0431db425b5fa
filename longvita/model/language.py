"""Qwen2.5 on megatron-core's GPTModel, and its logits-masked head.

The head selects the positions that carry loss first, then scores them chunk by chunk. The logits of all positions, or
of all selected positions, never exist at once, at any TP.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from longvita.config.schema import Config
from longvita.model.offload import offloaded_inputs
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform


class LanguageModel(GPTModel):
    """GPTModel whose forward pass ends at the final norm; the head below scores the rows that it needs.

    Every input is packed: documents back to back in one batch row, with their bounds in PackedSeqParams.
    """

    def __init__(
        self,
        settings: Config,
        config: TransformerConfig,
        groups: ParallelGroups,
        platform: Platform,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None,
    ):
        language = settings.model.language
        super().__init__(
            config=config,
            transformer_layer_spec=TransformerBlockSubmodules(
                layer_specs=[platform.language_layer_spec(groups)]
                * get_num_layers_to_build(config, vp_stage, groups.pp_rank),
                layer_norm=platform.norm(),
            ),
            vocab_size=language.vocab_size,
            max_sequence_length=language.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            position_embedding_type="rope",
            rotary_base=language.rotary_base,
            share_embeddings_and_output_weights=language.tie_word_embeddings,
            pg_collection=groups.language,
            vp_stage=vp_stage,
        )
        self._offload = platform.offload if settings.training.recompute.offload else None

    def forward(  # type: ignore[override]
        self,
        decoder_input: Tensor | None,
        packed_seq_params: PackedSeqParams,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Run this stage's layers, and the final norm on the last: hidden states [t, 1, h] or [t / TP, 1, h].

        decoder_input: from `embedding`, on the first stage; None elsewhere (see set_input_tensor).
        positions: [t], each row's position in its document; None where the rows are whole documents in order.
        """
        longest, hidden_size = packed_seq_params.max_seqlen_q, self.config.hidden_size
        rotary = self.rotary_pos_emb(longest, packed_seq=True) if positions is None else self._rotary_at(positions)
        with offloaded_inputs(self._offload, hidden_size) if self._offload else contextlib.nullcontext():
            return self.decoder(
                hidden_states=decoder_input,
                attention_mask=None,
                rotary_pos_emb=rotary,
                packed_seq_params=packed_seq_params,
            )

    def _rotary_at(self, positions: Tensor) -> Tensor:
        """Return Megatron's rotary angles [t, 1, 1, d] at these positions only."""
        inverse = self.rotary_pos_emb.inv_freq.to(positions.device)
        angles = torch.outer(positions.to(inverse.dtype), inverse)
        return torch.cat((angles, angles), dim=-1)[:, None, None]

    def output_weight(self) -> Tensor:
        """Return this TP rank's rows of the output layer, [v / TP, h]; last stage only."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight


def select_rows(hidden: Tensor, positions: Tensor, group: dist.ProcessGroup, sequence_parallel: bool) -> Tensor:
    """Select the hidden states at `positions`: [m, h], replicated over TP.

    hidden [t, 1, h], or this rank's [t / TP, 1, h] with sequence parallel; positions [m], ascending, among the t rows.
    The incoming gradient must be identical on every TP rank.
    """
    hidden = hidden.flatten(0, 1)
    if not sequence_parallel or group.size() == 1 or len(positions) == 0:
        return hidden[positions]
    length = len(hidden)
    owners = positions.div(length, rounding_mode="floor")
    counts = torch.bincount(owners, minlength=group.size()).tolist()
    own = hidden[positions[owners == group.rank()] - group.rank() * length]
    return _GatherSelected.apply(own, counts, group)


class _GatherSelected(torch.autograd.Function):
    """Gathers the selected rows of all TP ranks' slices on every TP rank. The incoming gradient is identical on every
    rank (the head has summed it over TP), so each rank takes its own part.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.start, ctx.count = sum(counts[: group.rank()]), len(rows)
        width = max(counts)
        padded = rows.new_zeros((width, rows.shape[1]))
        padded[: len(rows)] = rows
        gathered = rows.new_empty((group.size() * width, rows.shape[1]))
        dist.all_gather_into_tensor(gathered, padded, group=group)
        return torch.cat([gathered[r * width : r * width + count] for r, count in enumerate(counts)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.start : ctx.start + ctx.count], None, None


def chunked_cross_entropy(
    rows: Tensor, weight: Tensor, targets: Tensor, group: dist.ProcessGroup, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses (fp32 scalar, differentiable) and the losses [m] (fp32, for logs only).

    rows [m, h]: hidden states of the selected positions, replicated over TP. weight [v / TP, h]: this rank's rows of
    the output layer. targets [m]: token ids. A sum, because it is divided by the loss tokens of the global batch later:
    the loss is then one number at every layout.
    """
    if len(rows) == 0:
        # Keeps the graph connected: every parameter gets a gradient and every rank takes part in the reductions.
        return rows.float().sum() + 0.0 * weight.float().sum(), rows.new_zeros(0, dtype=torch.float32)
    return _ChunkedCrossEntropy.apply(rows, weight, targets, group, chunk, torch.is_grad_enabled())


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of rows against a vocabulary-parallel weight.

    The forward pass computes the gradients, chunk by chunk while the chunk's logits exist. The backward pass scales
    them by the incoming gradient, in place, and can run once. This holds one gradient of the weight and saves a second
    matrix product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        group: dist.ProcessGroup,
        chunk: int,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        need_rows, need_weight = (differentiate and needed for needed in ctx.needs_input_grad[:2])
        grad_rows = torch.zeros_like(rows) if need_rows else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        first = group.rank() * len(weight)
        for start in range(0, len(rows), chunk):
            part = slice(start, start + chunk)
            logits = torch.mm(rows[part], weight.t()).float()
            losses[part], index, outside = _cross_entropy(logits, targets[part] - first, group)
            if not (need_rows or need_weight):
                continue
            # `logits` holds probabilities now; minus the one-hot target they are the gradient.
            logits[torch.arange(len(logits), device=logits.device), index] -= (~outside).float()
            gradient = logits.to(rows.dtype)
            if grad_rows is not None:
                torch.mm(gradient, weight, out=grad_rows[part])
            if grad_weight is not None and gradient.dtype == grad_weight.dtype:
                # In place, without a second tensor as large as the weight. (torch's FLOP counter lacks addmm_.)
                torch.addmm(grad_weight, gradient.t(), rows[part], out=grad_weight)
            elif grad_weight is not None:
                grad_weight += torch.mm(gradient.t(), rows[part])
        if grad_rows is not None and group.size() > 1:
            dist.all_reduce(grad_rows, group=group)
        ctx.gradients = grad_rows, grad_weight
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the first backward pass has used up the gradients of this loss; compute the loss again")
        grad_rows, grad_weight = ctx.gradients
        ctx.gradients = None
        # In place: a copy of the weight's gradient would be the largest tensor of the head.
        if grad_rows is not None:
            grad_rows.mul_(grads[0])
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grads[0]).to(ctx.weight_dtype)
        return grad_rows, grad_weight, None, None, None, None


def _cross_entropy(logits: Tensor, targets: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the losses [m] of fp32 logits [m, v / TP], and turn the logits into probabilities in place.

    `targets` count from this rank's first row of the vocabulary. Returns the losses, the local targets (0 where another
    rank holds the target), and a mask of the targets that other ranks hold.
    """
    outside = (targets < 0) | (targets >= logits.shape[1])
    index = targets.masked_fill(outside, 0)
    highest = logits.amax(dim=1)
    if group.size() > 1:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    logits -= highest[:, None]
    chosen = logits.gather(1, index[:, None])[:, 0].masked_fill(outside, 0.0)
    logits.exp_()
    sums = torch.stack([logits.sum(dim=1), chosen])
    if group.size() > 1:
        dist.all_reduce(sums, group=group)
    logits /= sums[0][:, None]
    return sums[0].log() - sums[1], index, outside


def gathered_logits(rows: Tensor, weight: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return fp32 logits [m, v] of a few rows [m, h], complete on every TP rank; without a gradient."""
    local = torch.mm(rows, weight.t()).float()
    if group.size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(group.size())]
    dist.all_gather(parts, local.contiguous(), group=group)
    return torch.cat(parts, dim=1)
