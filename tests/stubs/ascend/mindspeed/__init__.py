"""Stub of MindSpeed, branch core_r0.16.0, for machines without its source.

Written after the public source at github.com/Ascend/MindSpeed, the branch's commit e4772499 (2026-07-10):
features_manager (megatron_basic, context_parallel), patch_utils, args_utils, log_config, core/megatron_basic,
core/optimizer/adamw, core/context_parallel, te/pytorch (module, attention). It has the names, the signatures, the order
and the traps of those files: the tensor-parallel size and group that are stored at their first use, the order in which
layers register parameters, the checks of a TransformerConfig, the logging to stdout. The ring is one gather of keys and
values in place of send and receive, with the same layout, arguments and numbers.

Left out: what it changes in torch itself (Tensor.view, Tensor.type, torch.compile), in random states and in gradient
reductions, which the CPU's patches need for themselves.
"""

__version__ = "0.16.0"
