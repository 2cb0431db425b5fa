"""Find the gradients that are not finite, on the rank that computed them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class GradientWatch:
    """Records which gradients of this rank are finite, before they are summed over the replicas.

    After the sum every replica has the same gradient, so that the rank that computed a bad one cannot be found any
    more. Recording takes one pass over the gradients and does not wait for the device.
    """

    def __init__(self, chunks: Sequence[Any]):
        """Watch chunks that Megatron's DDP wraps.

        The watch is called where Megatron would check gradients itself, which waits for the device in each bucket and
        ends the run.
        """
        self._names: list[list[str]] = []
        self._norms: dict[int, Tensor] = {}
        for index, chunk in reversed(list(enumerate(chunks))):  # the order of the backward pass
            place = {parameter: number for number, parameter in enumerate(chunk.parameters())}
            names = [f"chunk{index}.{name}" if len(chunks) > 1 else name for name, _ in chunk.named_parameters()]
            for group in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups):
                parameters = [parameter for bucket in group.buckets for parameter in bucket.params]
                parameters.sort(key=lambda parameter: place[parameter], reverse=True)
                group.ddp_config.check_for_nan_in_grad = True
                group.check_grads = self._recorder(len(self._names), parameters)
                self._names.append([names[place[parameter]] for parameter in parameters])

    def first_not_finite(self) -> str | None:
        """The parameter whose gradient the last backward pass reached first of those that are not finite; or None.

        Megatron fills its buckets in the order of the backward pass. Waits for the device.
        """
        for number in sorted(self._norms):
            finite = torch.isfinite(self._norms[number]).tolist()
            if not all(finite):
                return self._names[number][finite.index(False)].replace("module.", "")
        return None

    def _recorder(self, number: int, parameters: Sequence[Any]) -> Any:
        def record(*_: object, **__: object) -> None:
            self._norms[number] = torch.stack([torch.linalg.vector_norm(one.main_grad) for one in parameters])

        return record
