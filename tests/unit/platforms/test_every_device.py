"""Functions that MindSpeed's own source needs in a process in which every device is the CPU."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY

CODE = """
import functools

import torch

from tests.stubs import ascend_platform
from tests.stubs.every_device import make_every_device_the_cpu

ascend_platform.install()
make_every_device_the_cpu()
import torch_npu


def npu_is_cuda(fn):  # MindSpeed's wrapper of torch.Tensor.type
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        found = fn(*args, **kwargs)
        return found.replace("npu", "cuda") if isinstance(found, str) else found

    return wrapper


torch.Tensor.type = npu_is_cuda(torch.Tensor.type)
assert torch.nn.Parameter(torch.zeros(1)).type() == "torch.cuda.FloatTensor"
assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
assert torch.zeros(1).type(torch.int64).dtype is torch.int64

# As in MindSpeed's _set_cuda_rng_state and its Adam.
generator = torch.npu.default_generators[torch.cuda.current_device()]
generator.set_state(torch.npu.get_rng_state())
step = torch.tensor(1, dtype=torch.int64, device=torch.cuda.current_device())
step += 1
assert step.cuda() is step

# The equivalent of torch.cuda.nvtx.range_push and range_pop.
torch_npu.npu.mstx.range_end(torch_npu.npu.mstx.range_start("layer"))
print("found")
"""


def test_functions_that_mindspeed_calls_exist() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.stdout.strip() == "found", result.stderr[-2000:]
