"""Stub of Transformer Engine 2.20.2 on the CPU: its signatures and its placement of sequences, in plain torch.

Only what megatron-core 0.16.1 imports and the platform uses is here; unknown and missing arguments are refused by the
signatures themselves, what is not computed by `refuse`. Each module names the file that its signatures were read from
in the wheel transformer_engine-2.20.2-py3-none-any.whl; tests/unit/stubs compares them with that source where it is.
"""

__version__ = "2.20.2"

from . import common, pytorch  # noqa: F401
