"""Layers of the Ascend platform: Megatron's TE-shaped spec, filled by MindSpeed, around our own attention module.

Only MindSpeed's core attention gets the context-parallel size and the document bounds; the rest of the language model
sees neither, as on every platform.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from typing_extensions import override

from longvita.attention.core import CoreAttention
from longvita.attention.kernel import AttentionKernel
from longvita.attention.seq_params import LibrarySeqParams
from longvita.platforms.base import PlatformError
from longvita.platforms.norms import RMSNorm

MASK_SIDE = 2048
"""Side of the triangular mask that the fused operator expects for a causal mask of any size (sparse modes 2 and 3)."""
RIGHT_DOWN_CAUSAL = 3
"""Sparse mode: causal, with the last query aligned to the last key."""


def _operators() -> Any:
    """torch_npu, which only machines with NPUs have."""
    return importlib.import_module("torch_npu")


def language_layer_spec() -> ModuleSpec:
    """Megatron's TE-shaped decoder layer with `DocumentAttention`.

    Its other classes are those that MindSpeed's last repatch substituted for Transformer Engine's.
    """
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    spec = get_gpt_layer_with_transformer_engine_spec()
    spec.submodules.self_attention.submodules.core_attention = DocumentAttention
    return spec


class FusedKernel(AttentionKernel):
    """npu_fusion_attention without gradients, for generation.

    The operator returns the maximum and the sum of each softmax row. For packed documents their shape is [t, heads, 8],
    but in memory each document is head-major.
    """

    @override
    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The input's own type: the operator accumulates in fp32."""
        return dtype

    @override
    def causal_forward(self, q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scale: float) -> tuple[Tensor, Tensor]:
        mask = torch.ones(MASK_SIDE, MASK_SIDE, dtype=torch.bool, device=q.device).triu(1)
        return self._forward(q, k, v, bounds[1:], bounds[1:], scale, mask)

    @override
    def full_forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return self._forward(q, k, v, [len(q)], [len(k)], scale, None)

    def _forward(
        self, q: Tensor, k: Tensor, v: Tensor, ends_q: list[int], ends_k: list[int], scale: float, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        out, maximum, total, *_ = _operators().npu_fusion_attention(
            q,
            k,
            v,
            head_num=q.shape[1],
            input_layout="TND",
            atten_mask=mask,
            scale=scale,
            actual_seq_qlen=ends_q,
            actual_seq_kvlen=ends_k,
            sparse_mode=0 if mask is None else RIGHT_DOWN_CAUSAL,
        )
        sizes = [end - start for start, end in zip([0, *ends_q], ends_q, strict=False)]
        lse = (maximum + total.log()).reshape(-1, maximum.shape[-1])[:, 0]
        parts = lse.split([size * q.shape[1] for size in sizes])
        return out.float(), torch.cat([part.view(q.shape[1], -1).transpose(0, 1) for part in parts])

    @override
    def causal_backward(self, *unused: Any, **also: Any) -> tuple[Tensor, Tensor, Tensor]:
        raise PlatformError("this kernel is for generation and has no gradients; training uses MindSpeed's attention")

    full_backward = causal_backward


class DocumentAttention(CoreAttention):
    """MindSpeed's core attention, with megatron-core's interface, for packed documents.

    softmax_scale: 1/sqrt(head_dim) when None. Raises PlatformError for a mask type other than causal: MindSpeed creates
    a mask only for that type, and silently attends in both directions for all others, padding_causal included.
    """

    kernel = FusedKernel()

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **unused: Any,
    ) -> None:
        super().__init__(config, layer_number, attn_mask_type, attention_type, softmax_scale=softmax_scale)
        # Imported here because repatch replaces the class.
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        if attn_mask_type is not AttnMaskType.causal:
            raise PlatformError(
                f"attn_mask_type={attn_mask_type}: MindSpeed creates a mask only for AttnMaskType.causal and silently "
                "attends in both directions for other types; fix: use causal with document bounds"
            )
        # Only this layer's config contains the context-parallel size. copy.deepcopy, because MindSpeed rebuilds the
        # config's class, which breaks dataclasses.replace.
        own = copy.deepcopy(config)
        own.context_parallel_size = parallel_state.get_context_parallel_world_size()
        self.core = TEDotProductAttention(
            config=own,
            layer_number=layer_number,
            attn_mask_type=attn_mask_type,
            attention_type=attention_type,
            softmax_scale=softmax_scale,
        )

    @override
    def attend_whole(self, q: Tensor, k: Tensor, v: Tensor, params: PackedSeqParams, scale: float) -> Tensor:
        if isinstance(params, LibrarySeqParams):
            params = params.attention
        causal = AttnMaskType.causal
        return self.core(q, k, v, None, attn_mask_type=causal, attention_bias=None, packed_seq_params=params)

    @override
    def attend_batch(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
        raise ValueError("this attention supports packed documents only")


class TileAttention(CoreAttention):
    """Core attention of the vision tower, without a mask over the positions of a tile.

    It calls the fused operator directly. MindSpeed's attention reads its mask and its ring from the language model's
    arguments and would be causal here.
    """

    @override
    def attend_batch(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
        if causal:
            raise PlatformError("a tile has no causal mask; fix: use AttnMaskType.no_mask in the vision tower")
        flat = (x.flatten(2) for x in (q, k, v))
        return _operators().npu_fusion_attention(*flat, head_num=q.shape[2], input_layout="SBH", scale=scale)[0]


class FusedRMSNorm(RMSNorm):
    """The final norm, on the fused operator."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return _operators().npu_rms_norm(x, self.weight, epsilon=self.eps)[0]
