"""The time that a step waits for its data, by a clock of the test's own."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from longvita.training.metrics import Metrics, read_metrics
from longvita.training.step import TimedBatches
from tests.distributed.helpers import run_distributed
from tests.unit.training.test_metrics import config, figures


class Clock:
    """Stands still until the test advances it."""

    now = 0.0

    def __call__(self):
        return self.now


def slow_batches(clock, seconds):
    """Batches that take so many seconds each."""
    for number, wait in enumerate(seconds):
        clock.now += wait
        yield number


def step(batches, clock, count, compute):
    """Take batches as the schedule does, with computation in between."""
    start = clock.now
    for _ in range(count):
        next(batches)
        clock.now += compute
    return clock.now - start


def waits(rank, world_size):
    """Seconds waited in two steps of two batches, the second rank's loader three times as slow."""
    clock = Clock()
    batches = TimedBatches(slow_batches(clock, [(1 + 2 * rank) * 0.5] * 3 + [0.0]), clock=clock)
    found = []
    for _ in range(2):
        step(batches, clock, 2, compute=1.0)
        found.append(batches.take_seconds(torch.device("cpu")))
    return found


def test_all_ranks_report_the_longest_wait():
    assert run_distributed(waits, 2) == [[3.0, 1.5]] * 2


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_slow_loader_is_in_the_metrics(tmp_path, capsys):
    clock = Clock()
    batches = TimedBatches(slow_batches(clock, [3.0, 1.0, 0.0, 0.0]), clock=clock)
    with Metrics(tmp_path, config(tensorboard=True), 0, devices=1, peak_flops=1e9) as metrics:
        for number in (1, 2):
            seconds = step(batches, clock, 2, compute=0.5)
            metrics.step(number, figures(1.0), seconds, batches.take_seconds(torch.device("cpu")))
    assert [line["data_wait_fraction"] for line in read_metrics(tmp_path)] == [0.8, 0.0]
    assert "data wait 80%" in capsys.readouterr().err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = [event.value for event in events.Scalars("speed/data_wait_fraction")]
    assert written == pytest.approx([0.8, 0.0])


def test_an_error_while_waiting_passes():
    with pytest.raises(StopIteration):
        next(TimedBatches(iter([])))
