"""The compiled part of torch_npu: options of hccl's groups, which the stub's processes do not use."""

from __future__ import annotations


class ProcessGroupHCCL:
    """hccl's groups; tests use gloo."""

    class Options:
        """Options of a group. As in torch_npu 2.13.0 there is no `hccl_config` until it is set."""


class _distributed_c10d:
    ProcessGroupHCCL = ProcessGroupHCCL
