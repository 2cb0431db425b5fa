"""Stub of flash-attn on the CPU: the two functions that the Nvidia platform calls, in plain torch.

Signatures read from Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py at commit
005300258a22e5fc6be621063c3d5704e82b89d9; megatron-core looks for the two names below as well.
"""

flash_attn_varlen_func = flash_attn_with_kvcache = None
