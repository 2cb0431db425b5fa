"""transformer_engine/pytorch/ops: operation-based layers, named in annotations of megatron-core and never built."""


class Sequential: ...


class FusibleOperation: ...
