"""Attention to tiles, against a plain softmax."""

from __future__ import annotations

import types

import pytest
import torch

from longvita.inference import frame_attention
from longvita.inference.frame_attention import FrameAttention

HEADS, GROUPS, DIM, ROWS = 6, 2, 8, 23


@pytest.mark.parametrize("block", [5, 100])
def test_shares_equal_a_softmax(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(frame_attention.dist, "all_reduce", lambda tensor, group: None)
    generator = torch.Generator().manual_seed(1)
    observer, expected = FrameAttention(), torch.zeros(ROWS + 3)
    for token in range(3):
        keys = torch.randn(ROWS + token, GROUPS, DIM, generator=generator)
        q = torch.randn(1, HEADS, DIM, generator=generator)
        own = torch.randn(GROUPS, DIM, generator=generator)
        # The new token's own key counts in the sum, but lies in no tile.
        every = torch.cat([keys, own[None]]).repeat_interleave(HEADS // GROUPS, dim=1)
        scores = torch.einsum("hd,nhd->hn", q[0], every) * 0.3
        observer.observe(q, [(part, part) for part in keys.split(block)], scores.logsumexp(dim=1)[None], 0.3)
        expected[: ROWS + token] += scores.softmax(dim=1).sum(dim=0)[:-1]
    expected /= 3 * HEADS
    groups = types.SimpleNamespace(cp_rank=0, tp_cp=None, pp=None)
    shares = observer.shares(range(ROWS + 2), [2, 6, 20], 4, groups, torch.device("cpu"))
    wanted = torch.stack([expected[2:6].sum(), expected[6:10].sum(), expected[20:24].sum()])
    torch.testing.assert_close(shares, wanted, rtol=1e-5, atol=1e-6)
    assert observer.shares(range(ROWS), [], 4, groups, torch.device("cpu")).shape == (0,)
