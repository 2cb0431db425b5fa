"""The names of torchair.ge that MindSpeed imports. They describe compiled graphs, of which the stub makes none."""

from __future__ import annotations

from typing import Any


class Tensor:
    """A tensor of a graph."""


class TensorSpec:
    """Shape and type of a tensor of a graph."""


class DataType:
    """Types of elements."""


class Format:
    """Layouts in memory."""


def custom_op(*args: Any, **kwargs: Any) -> Any:
    """An operator of a graph."""
    raise NotImplementedError("the stub compiles no graph")


Const = Cast = Clone = custom_op
