"""The changes of this project to megatron-core and torch, with reasons: a file per target, a folder per platform."""
