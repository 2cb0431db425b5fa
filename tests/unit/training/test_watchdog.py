"""Which ranks a stall is blamed on, and what is read of their stacks."""

from __future__ import annotations

import dataclasses
import faulthandler
import threading

from longvita.config.schema import WatchConfig
from longvita.training.watchdog import (
    HEARTBEATS,
    STACKS,
    Heartbeat,
    Watchdog,
    lagging_ranks,
    main_stack,
    read_heartbeats,
)


def beat(rank: int, phases: int, age: float = 1.0) -> Heartbeat:
    return Heartbeat(rank, f"node{rank}", 100 + rank, 7, "compute", phases, 30.0, 1000.0 - age)


def test_the_rank_with_the_fewest_phases_lags():
    (only,) = lagging_ranks([beat(0, 12), beat(1, 11), beat(2, 12)], 1000.0)
    assert (only["rank"], only["host"], only["silent_seconds"]) == (1, "node1", 0.0)


def test_the_rank_that_reads_lags_whatever_a_later_stage_has_begun():
    first, second = beat(0, 12), beat(1, 9)
    (only,) = lagging_ranks([dataclasses.replace(first, phase="data"), second], 1000.0)
    assert only["rank"] == 0


def test_a_silent_rank_lags_whatever_it_did_before():
    (only,) = lagging_ranks([beat(0, 12), beat(1, 12, age=90.0), beat(2, 11)], 1000.0)
    assert (only["rank"], only["silent_seconds"]) == (1, 90.0)


def test_the_main_thread_is_read(tmp_path):
    leave = threading.Event()
    other = threading.Thread(target=leave.wait)
    other.start()
    with open(tmp_path / "stacks", "w") as file:
        faulthandler.dump_traceback(file)
    leave.set()
    other.join()
    frames = main_stack(tmp_path / "stacks")
    assert "test_the_main_thread_is_read" in frames[0]
    assert main_stack(tmp_path / "absent") == []


def test_an_orderly_end_leaves_no_file(tmp_path):
    with Watchdog(WatchConfig(), tmp_path, 3) as watchdog:
        watchdog.phase("compute", 5, 2.0)
        watchdog._write_heartbeat()
        (written,) = read_heartbeats(tmp_path)
        assert (written.rank, written.step, written.phase, written.phases) == (3, 5, "compute", 1)
        assert watchdog._limit == WatchConfig().min_seconds
        watchdog.phase("compute", 5, 1000.0)
        assert watchdog._limit == 10_000.0
        watchdog.phase("data", 5, 1000.0, least_seconds=20_000.0)
        assert watchdog._limit == 20_000.0
        watchdog.phase("save", 5)
        assert watchdog._limit == 60 * WatchConfig().first_minutes
    assert [list((tmp_path / name).iterdir()) for name in (HEARTBEATS, STACKS)] == [[], []]


def test_without_a_factor_nothing_is_watched(tmp_path):
    with Watchdog(WatchConfig(factor=None), tmp_path, 0) as watchdog:
        watchdog.phase("compute", 1, 2.0)
    assert list(tmp_path.iterdir()) == []
