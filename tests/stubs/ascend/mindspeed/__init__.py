"""Stub of MindSpeed, branch core_r0.16.0, for machines without its source.

Written after the public source at github.com/Ascend/MindSpeed: features_manager (context_parallel at 2084668,
megatron_basic at 2436b58, requirements_basic at 0041b91, transformer_engine_basic at 1a38359), patch_utils at 2435777,
core/megatron_basic/arguments_basic at 1f5feb8, core/context_parallel (dot_product_attention at 60f104c with the
`**kwargs` of the branch, model_parallel_utils at 1f5feb8), te/pytorch/module/layernorm_column_parallel_linear at
a9d3f9c. It has the names, the signatures, the order and the traps of those files; the ring is one gather of keys and
values in place of send and receive, with the same layout, arguments and numbers.

Left out: what it changes in torch itself (Tensor.view, Tensor.type, torch.compile), in random states and in gradient
reductions, which the CPU's patches need for themselves.
"""

__version__ = "0.16.0"
