"""The Long-VITA model: InternViT, projector and Qwen2.5 on megatron-core's modules."""
