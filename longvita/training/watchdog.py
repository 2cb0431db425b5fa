"""Find a rank that stands still: heartbeats without collectives, stacks of all ranks, and an end that can be restarted.

Each rank writes what it is doing to a file every few seconds. faulthandler's timer, which needs neither the
interpreter lock nor the main thread, writes the stacks of a rank that has been in one phase for too long. Then a rank
that still runs compares the heartbeats, names the ranks that lag, and ends its process with EXIT_STALLED.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longvita.config.schema import WatchConfig
from longvita.processes import EXIT_STALLED
from longvita.training.events import read_events, write_event

HEARTBEATS, STACKS = "heartbeats", "stacks"
"""Folders below a run's output folder: a file for each rank."""
BEAT_SECONDS = 5.0
"""Time between two heartbeats."""
SILENT_BEATS = 4
"""Heartbeats missing in a row after which a rank is silent: stopped, or holding the interpreter lock."""
REPORT_SECONDS = 10.0
"""Time from the stacks to the report, in which the other ranks write theirs."""
MAX_REPORT_SECONDS = 30.0
"""Time after which a process ends without a report: the store does not answer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heartbeat:
    """What a rank was doing at a time."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    phases: int
    """Phases begun since the start: the rank with the fewest lags."""
    seconds: float
    """Time in this phase."""
    time: float
    """Seconds since the epoch."""


class Watchdog:
    """Watches this rank. Use as a context manager around the run's steps."""

    def __init__(self, settings: WatchConfig, output: Path, rank: int):
        self._settings, self._output, self._rank = settings, output, rank
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._step, self._phase, self._phases = 0, "start", 0
        self._began, self._limit = time.monotonic(), 60 * settings.first_minutes

    def __enter__(self) -> Watchdog:
        if self._settings.factor is not None:
            for name in (HEARTBEATS, STACKS):
                (self._output / name).mkdir(parents=True, exist_ok=True)
            self._stacks = open(_file(self._output, STACKS, self._rank), "a")
            # Two threads, since a store that does not answer must not keep the second one from ending the process.
            self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch)]
            for thread in self._threads:
                thread.start()
            self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads:
            faulthandler.cancel_dump_traceback_later()
            self._ended.set()
            for thread in self._threads:
                thread.join()
            is_empty = self._stacks.tell() == 0  # It keeps the stacks of an earlier start.
            self._stacks.close()
            for name in (HEARTBEATS, *([STACKS] if is_empty else [])):
                _file(self._output, name, self._rank).unlink(missing_ok=True)

    def phase(self, name: str, step: int, expected_seconds: float = 0.0, least_seconds: float = 0.0) -> None:
        """Begin a phase of a step.

        expected_seconds: how long it takes; 0 if that is not known yet. least_seconds: what it may take in any case.
        """
        settings = self._settings
        limit = 60 * settings.first_minutes
        if expected_seconds and settings.factor is not None:
            limit = max(settings.min_seconds, settings.factor * expected_seconds)
        limit = max(limit, least_seconds)
        self._step, self._phase, self._phases = step, name, self._phases + 1
        self._began, self._limit = time.monotonic(), limit
        if self._threads:
            self._arm()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(self._limit, file=self._stacks)

    def _beat(self) -> None:
        """A thread: write heartbeats."""
        while not self._ended.wait(BEAT_SECONDS):
            self._write_heartbeat()

    def _watch(self) -> None:
        """A thread: report when this rank stands still, and end the process."""
        while not self._ended.wait(1.0):
            if time.monotonic() - self._began > self._limit + REPORT_SECONDS:
                report = threading.Thread(target=self._report, daemon=True)
                report.start()
                report.join(MAX_REPORT_SECONDS + self._rank)
                os._exit(EXIT_STALLED)  # The main thread cannot be ended from here.

    def _write_heartbeat(self) -> None:
        beat = Heartbeat(
            self._rank,
            socket.gethostname(),
            os.getpid(),
            self._step,
            self._phase,
            self._phases,
            time.monotonic() - self._began,
            time.time(),
        )
        file = _file(self._output, HEARTBEATS, self._rank)
        with contextlib.suppress(OSError):  # a full disk
            draft = file.with_name(f".{file.name}")
            draft.write_text(json.dumps(asdict(beat)), encoding="utf-8")
            draft.replace(file)

    def _report(self) -> None:
        """Write the event of this stall and print it, unless another rank does.

        Each rank waits a second longer than the one before it, until the event is there.
        """
        began = time.time() - (time.monotonic() - self._began)
        last = time.monotonic() + self._rank
        while not _has_stall_since(self._output, began):
            if time.monotonic() >= last:
                self._write_report()
                return
            time.sleep(0.5)

    def _write_report(self) -> None:
        lagging = lagging_ranks(list(read_heartbeats(self._output)), time.time())
        limit = round(self._limit, 1)
        write_event(
            self._output,
            "stall",
            self._step,
            phase=self._phase,
            limit_seconds=limit,
            lagging=lagging,
            stacks={str(rank["rank"]): main_stack(_file(self._output, STACKS, rank["rank"])) for rank in lagging},
            waiting_in=main_stack(_file(self._output, STACKS, self._rank)),
        )
        logger.error(
            "step %d stands still in phase %s for more than %g s; lagging: %s; stacks of all ranks: %s",
            self._step,
            self._phase,
            limit,
            ", ".join(_lag_text(rank) for rank in lagging),
            self._output / STACKS,
        )


def _has_stall_since(output: Path, began: float) -> bool:
    """Whether a rank has reported a stall since a time, seconds since the epoch."""
    stalls = (event["time"] for event in read_events(output) if event["event"] == "stall")
    return any(datetime.datetime.fromisoformat(when).timestamp() >= began for when in stalls)


def _file(output: Path, folder: str, rank: int) -> Path:
    return output / folder / f"rank-{rank:05d}"


def _lag_text(rank: dict[str, Any]) -> str:
    silent = f", silent for {rank['silent_seconds']:.0f} s" if rank["silent_seconds"] else ""
    return f"rank {rank['rank']} on {rank['host']} in {rank['phase']}{silent}"


def read_heartbeats(output: Path) -> Iterator[Heartbeat]:
    """Read the heartbeats of the ranks that run, or ended without an orderly exit."""
    for file in sorted((output / HEARTBEATS).glob("rank-*")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            yield Heartbeat(**json.loads(file.read_text(encoding="utf-8")))


def lagging_ranks(beats: list[Heartbeat], now: float) -> list[dict[str, Any]]:
    """The ranks that the others wait for: the silent ones, or else those that wait for data while others compute (later
    pipeline stages wait for them with fewer phases begun), or else those that have begun the fewest phases.

    `silent_seconds` is the time since the last heartbeat of a silent rank, and 0 for the others.
    """
    ages = {beat.rank: now - beat.time for beat in beats}
    fewest = min((beat.phases for beat in beats), default=0)
    silent = [beat for beat in beats if ages[beat.rank] > SILENT_BEATS * BEAT_SECONDS]
    reading = [beat for beat in beats if beat.phase == "data"]
    chosen = silent or (reading if len(reading) < len(beats) else []) or [one for one in beats if one.phases == fewest]
    return [
        {
            "rank": beat.rank,
            "host": beat.host,
            "pid": beat.pid,
            "step": beat.step,
            "phase": beat.phase,
            "silent_seconds": round(ages[beat.rank], 1) if beat in silent else 0.0,
        }
        for beat in chosen
    ]


def main_stack(path: Path) -> list[str]:
    """The innermost frames of a rank's main thread, which faulthandler writes last; empty if it could not be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.rpartition("hread 0x")[2].splitlines()[1:9]]
