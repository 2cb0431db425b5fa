"""What the project changes in megatron-core and torch, and why: one file per target, one folder per platform."""
