"""megatron-core's random number tracker on the CPU's generator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.tensor_parallel.random import _MODEL_PARALLEL_RNG_TRACKER_NAME

from megatron_patches.patch import Patch


def set_rng_state(new_state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
    """Set the state of the default generator."""
    torch.default_generator.set_state(new_state)


@contextlib.contextmanager
def fork(self: Any, name: str = _MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
    """Run the body with the generator state `name`, which continues from the end of its previous body.

    The original warns if the CPU's generator has changed after the body. Here that generator is the tracked one, so it
    would always warn. Raises KeyError for a state that was never added.
    """
    if name not in self.states_:
        raise KeyError(
            f"random state {name!r} was never added; known: {sorted(self.states_)}; fix: call Platform.seed first"
        )
    outer_name, outer_state = self._current_state_name, torch.get_rng_state()
    nested = outer_name in self.states_
    if nested:
        self.states_[outer_name] = outer_state
    torch.set_rng_state(self.states_[name])
    self._current_state_name = name
    try:
        yield
    finally:
        self.states_[name] = torch.get_rng_state()
        torch.set_rng_state(self.states_[outer_name] if nested else outer_state)
        self._current_state_name = outer_name


PATCHES = [
    Patch(
        target="megatron.core.tensor_parallel.random:_set_cuda_rng_state",
        replacement=set_rng_state,
        why="sets the state of a CUDA generator through torch's C functions",
        remove_when="megatron-core keeps random states per device",
        signature="def _set_cuda_rng_state(new_state, device=-1, graph_safe=False)",
    ),
    Patch(
        target="megatron.core.tensor_parallel.random:CudaRNGStatesTracker.fork",
        replacement=fork,
        why="warns 'CPU RNG state changed within GPU RNG context' at every use: the CPU's state is the tracked one",
        remove_when="megatron-core keeps random states per device",
        signature="def fork(self, name='model-parallel-rng')",
    ),
]
