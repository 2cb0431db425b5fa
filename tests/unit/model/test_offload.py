"""Offloaded layer inputs: which tensors, the order in which they are fetched, and the peak memory of a step."""

from __future__ import annotations

import subprocess
import sys

import torch
from megatron.core.tensor_parallel.random import CheckpointFunction
from torch import Tensor

from longvita.model.offload import offloaded_inputs
from longvita.platforms import get
from tests.conftest import REPOSITORY

LAYERS, TOKENS, HIDDEN = 16, 8192, 256
STEP = """
import sys

import torch

from longvita import platforms
from longvita.processes import init_distributed
from longvita.model.build import build_model
from tests.tiny import text_batch, tiny_config

sys.path.append("tools/benchmark")
from peak_memory import reset_peak, peak, resident, return_freed_memory

return_freed_memory()
offload, layers, tokens, hidden = sys.argv[1] == "True", *map(int, sys.argv[2:])
language = {"num_layers": layers, "hidden_size": hidden, "ffn_hidden_size": 64, "max_position_embeddings": tokens}
training = {
    "recompute": {"granularity": "full", "method": "uniform", "offload": offload},
    "loss_chunk_size": 256,
    "mlp_chunk_size": 256,
}
config = tiny_config(model={"language": language}, training=training, data={"sequence_length": tokens})
platform = platforms.get("cpu")
platform.activate()
init_distributed(platform.backend, platform.set_device)
(model,) = build_model(config, platform.build_groups(config), platform)
batch = text_batch(tokens, documents=64)
before = resident()
reset_peak()
loss, _, _ = model.train()(batch)
loss.backward()
norm = sum(float(parameter.grad.norm()) for parameter in model.parameters() if parameter.grad is not None)
print(peak() - before, float(loss), norm)
"""


class LoggedTensor:
    """One offloaded tensor; the log records what is done with it."""

    def __init__(self, tensor: Tensor, log: list[str], name: str):
        self.tensor, self.log, self.name = tensor.clone(), log, name

    def start(self) -> None:
        self.log.append(f"start {self.name}")

    def fetch(self) -> Tensor:
        self.log.append(f"fetch {self.name}")
        return self.tensor


def test_each_input_is_offloaded_once_and_fetched_while_the_next_layer_runs() -> None:
    log: list[str] = []
    put: list[Tensor] = []

    def offload(tensor: Tensor) -> LoggedTensor:
        put.append(tensor)
        log.append(f"put {len(put)}")
        return LoggedTensor(tensor, log, str(len(put)))

    # Megatron's recomputation keeps the state of random numbers, which the platform answers for.
    get("cpu").activate()
    weights = [torch.randn(4, 4, requires_grad=True) for _ in range(3)]
    rotary = torch.randn(5, 1, 1, 4)

    def layer(weight: Tensor):
        def run(hidden: Tensor, rotary: Tensor) -> Tensor:
            log.append("layer")
            return torch.tanh(hidden @ weight) * rotary[..., 0]

        return run

    def forward(hidden: Tensor) -> Tensor:
        for weight in weights:
            hidden = CheckpointFunction.apply(layer(weight), False, hidden, rotary)
        return hidden

    hidden = torch.randn(5, 1, 4, requires_grad=True)
    forward(hidden).sum().backward()
    expected = [hidden.grad, *(weight.grad for weight in weights)]
    hidden.grad, log[:] = None, []
    for weight in weights:
        weight.grad = None
    with offloaded_inputs(offload, 4):
        output = forward(hidden)
    output.sum().backward()
    assert log == [
        *("layer", "put 1", "layer", "put 2", "layer", "put 3"),
        *("fetch 3", "start 2", "layer", "fetch 2", "start 1", "layer", "fetch 1", "layer"),
    ]
    for gradient, wanted in zip([hidden.grad, *(weight.grad for weight in weights)], expected, strict=True):
        assert torch.equal(gradient, wanted)


def test_the_peak_of_a_step_is_lower_by_the_layer_inputs() -> None:
    results = {}
    for offload in (False, True):
        line = [sys.executable, "-c", STEP, str(offload), *map(str, (LAYERS, TOKENS, HIDDEN))]
        result = subprocess.run(line, capture_output=True, text=True, timeout=200, cwd=REPOSITORY, check=False)
        assert result.returncode == 0, result.stderr
        results[offload] = result.stdout.split()
    assert results[True][1:] == results[False][1:]
    inputs = LAYERS * TOKENS * HIDDEN * 4
    # All of them but the one in use and those on their way.
    assert int(results[False][0]) - int(results[True][0]) >= 0.7 * inputs
