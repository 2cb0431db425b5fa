"""Stub of torch_npu for machines without an Ascend device: its fused operators in plain torch, on the CPU.

The signatures are those of torch_npu 2.13.0, as its libraries hold them (`SCHEMAS`); what an operator does with its
arguments is from the documents of the same release (op-plugin's docs of npu_fusion_attention and others). An argument
that is not in the schema is a TypeError, a use that the real operator refuses, or that is not modelled here, an error.
"""

from __future__ import annotations

import sys

import torch

from torch_npu import _C, npu
from torch_npu.attention import npu_fusion_attention, npu_fusion_attention_grad
from torch_npu.operators import (
    npu_rms_norm,
    npu_rms_norm_backward,
    npu_rotary_mul,
    npu_rotary_mul_backward,
    npu_swiglu,
    npu_swiglu_backward,
)
from torch_npu.schemas import SCHEMAS

__version__ = "2.13.0"

unsupported_dtype = (torch.quint8, torch.quint4x2, torch.quint2x4, torch.qint32, torch.qint8)
"""Types that no operator of the device takes."""

__all__ = [
    "SCHEMAS",
    "_C",
    "npu",
    "npu_fusion_attention",
    "npu_fusion_attention_grad",
    "npu_rms_norm",
    "npu_rms_norm_backward",
    "npu_rotary_mul",
    "npu_rotary_mul_backward",
    "npu_swiglu",
    "npu_swiglu_backward",
    "unsupported_dtype",
]

sys.modules["torch"].npu = npu
