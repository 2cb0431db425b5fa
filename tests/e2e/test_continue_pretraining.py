"""Continued pretraining, end to end: index, report, training under CP, stopped and resumed at two layouts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.e2e.pretraining_material import STEPS, write_pretraining_config, write_pretraining_data
from tests.e2e.training_material import log_of, losses_of, start

MAX_SECONDS = 400
STOPPED = 75
"""Exit code of a run that SIGTERM ended."""


def run_script(config: Path, *overrides: str):
    script = REPOSITORY / "scripts" / "continue_pretraining.sh"
    return start(["bash", str(script), str(config), *overrides], config.parent)


def stop_in_the_middle(process, output: Path) -> int:
    """Sends SIGTERM once half of the steps are done; the steps done in the end."""
    deadline = time.monotonic() + MAX_SECONDS
    while max(losses_of(output), default=0) < STEPS // 2:
        assert process.poll() is None, log_of(output.parent)
        assert time.monotonic() < deadline, log_of(output.parent)
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=MAX_SECONDS) == STOPPED, log_of(output.parent)
    done = max(losses_of(output))
    assert done < STEPS
    return done


def test_resumes_as_if_it_had_never_stopped(tmp_path: Path):
    write_pretraining_data(tmp_path)
    config = write_pretraining_config(tmp_path)
    unstopped, same, other = (tmp_path / name for name in ("unstopped", "same", "other"))
    assert run_script(config, f"output={unstopped}").wait(timeout=MAX_SECONDS) == 0, log_of(tmp_path)
    expected = losses_of(unstopped)
    assert list(expected) == list(range(1, STEPS + 1))
    assert expected[STEPS] < expected[1]
    page = (unstopped / "data.html").read_text(encoding="utf-8")
    assert all(source in page for source in ("bible", "captions", "clips", "damaged"))
    assert "data:image/" in page, "pictures of the examples"

    done = stop_in_the_middle(run_script(config, f"output={same}"), same)
    shutil.copytree(same, other)
    assert run_script(config, f"output={same}").wait(timeout=MAX_SECONDS) == 0, log_of(tmp_path)
    assert losses_of(same) == expected, "identical bits at the same layout"

    elsewhere = ["layout.context_parallel=1", "layout.tensor_parallel=2", "layout.sequence_parallel=true"]
    assert run_script(config, f"output={other}", *elsewhere).wait(timeout=MAX_SECONDS) == 0, log_of(tmp_path)
    errors = {step: abs(loss - expected[step]) / expected[step] for step, loss in losses_of(other).items()}
    assert list(errors) == list(expected)
    assert errors[done + 1] <= 1e-6
    assert max(errors.values()) <= 1e-4

    accountings = [json.loads((output / "sample_accounting.json").read_text()) for output in (unstopped, same, other)]
    assert accountings[0] == accountings[1] == accountings[2]
