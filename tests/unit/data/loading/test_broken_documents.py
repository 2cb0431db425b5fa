from __future__ import annotations

import concurrent.futures

import pytest
import torch.distributed as dist

from longvita.data.errors import Reason, SampleError
from longvita.data.loading import broken_documents as module
from longvita.data.loading.broken_documents import SharedFindings

BROKEN = SampleError(Reason.BROKEN_VIDEO, "frame 3 is damaged")


def ranks(store, decoders=2, later=1, history=100):
    first = [SharedFindings(store, "data", f"0/{rank}", rank, history) for rank in range(decoders)]
    return first + [SharedFindings(store, "data", f"{stage + 1}/0", None, history) for stage in range(later)]


def ask_all(by_rank, own, decoders, number=0):
    with concurrent.futures.ThreadPoolExecutor(len(by_rank)) as pool:
        asked = [
            pool.submit(findings.collect, number, own.get(rank, {}), decoders) for rank, findings in enumerate(by_rank)
        ]
        return [future.result(timeout=30) for future in asked]


def readable(findings):
    return [{document: (error.reason, error.detail) for document, error in found.items()} for found in findings]


def test_all_ranks_and_later_stages_get_all_findings():
    own = {0: {4: BROKEN}, 1: {2: SampleError(Reason.BROKEN_PICTURE, "cut")}}
    expected = {2: (Reason.BROKEN_PICTURE, "cut"), 4: (Reason.BROKEN_VIDEO, "frame 3 is damaged")}
    assert readable(ask_all(ranks(dist.HashStore()), own, [0, 1])) == [expected] * 3


def test_only_ranks_with_tiles_are_waited_for():
    by_rank = ranks(dist.HashStore())
    assert by_rank[2].collect(0, {}, []) == {}
    own = {1: {0: BROKEN}}
    # Rank 0 writes nothing, and nobody waits for it.
    assert readable([by_rank[1].collect(1, own[1], [1]), by_rank[2].collect(1, {}, [1])])[1].keys() == {0}


def test_the_first_stage_never_waits_for_later_ones():
    first = ranks(dist.HashStore(), decoders=1, later=2)[0]
    for number in range(5):
        assert first.collect(number, {}, [0]) == {}


def test_a_loader_does_not_read_what_an_earlier_one_wrote():
    store = dist.HashStore()
    assert ask_all(ranks(store), {0: {0: BROKEN}}, [0, 1])[2].keys() == {0}
    assert ask_all(ranks(store), {}, [0, 1]) == [{}] * 3


def test_old_findings_are_removed():
    store = dist.HashStore()
    findings = SharedFindings(store, "data", "0/0", 0, history=4)
    sizes = []
    for number in range(20):
        findings.collect(number, {}, [0] if number % 3 else [])
        sizes.append(store.num_keys())
    assert max(sizes[10:]) == sizes[-1] <= 6


def test_a_timeout_names_the_rank(monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.05)
    findings = ranks(dist.HashStore())[0]
    with pytest.raises(TimeoutError, match="vision rank 1 has not written its findings on micro batch 7"):
        findings.collect(7, {}, [0, 1])
