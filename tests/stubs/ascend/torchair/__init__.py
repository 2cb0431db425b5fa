"""Stub of torchair as torch_npu 2.13.0 contains it: MindSpeed imports it, and uses it only for compiled graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchair import ge

__all__ = ["ge", "register_fx_node_ge_converter"]


def register_fx_node_ge_converter(aten_op: Any) -> Callable[[Callable], Callable]:
    """Decorator of an operator's converter, which is kept as it is: no graph is compiled here."""
    return lambda converter: converter
