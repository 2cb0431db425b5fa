import errno
import os

import pytest
import torch

from longvita.platforms.base import PlatformError
from longvita.platforms.cpu.disk_offload import OffloadFile


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_restored_bitwise_and_space_is_reused(dtype):
    file = OffloadFile()
    first = [torch.randn(5, 1, 7, generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(6)]
    offloaded = [file.put(tensor.transpose(0, 2)) for tensor in first]
    size = first[0].numel() * first[0].element_size()
    for tensor, put in zip(reversed(first), reversed(offloaded), strict=True):
        put.start()
        back = put.fetch()
        assert back.dtype == dtype and torch.equal(back, tensor.transpose(0, 2))
        assert torch.equal(put.fetch(), back)
    assert os.fstat(file._file.fileno()).st_size == 6 * size
    offloaded.clear()
    del put
    again = [file.put(tensor) for tensor in first]
    assert all(torch.equal(put.fetch(), tensor) for put, tensor in zip(again, first, strict=True))
    assert os.fstat(file._file.fileno()).st_size == 6 * size


def test_a_full_disk_is_reported(monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    file = OffloadFile()
    with pytest.raises(
        PlatformError, match=r"file in TMPDIR: .*No space left on device; fix: set TMPDIR to a folder with more room"
    ):
        file.put(torch.zeros(3)).fetch()
