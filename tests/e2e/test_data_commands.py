"""`longvita data index, retry, report, view` and the sample accounting of `longvita train`, one after another."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.e2e.training_material import environment, log_of, start_train, write_run
from tests.unit.data.material import conversation, cut_file, picture, write_jsonl, write_video

MAX_SECONDS = 280
STEPS = 12


def write_films(folder):
    """The config of a run with a third source: six films, of which one, in their middle, breaks when it is decoded."""
    names = ("words", "pictures", "films")
    path = write_run(
        folder,
        data={"dataset": {name: {"data_paths": [f"{name}.jsonl"]} for name in names}},
        training={"train_iterations": STEPS, "validation_interval": 0, "global_batch_size": 4},
    )
    write_video(folder / "media" / "whole.mp4", count=40, fps=4)
    cut_file(folder / "media" / "whole.mp4", folder / "media" / "cut.mp4", 0.6)
    films = [
        conversation(f"<video>\nFilm {n}?", str(n), videos=["cut.mp4" if n == 3 else "whole.mp4"]) for n in range(6)
    ]
    write_jsonl(folder / "films.jsonl", films)
    return path


def train(config, *overrides):
    assert start_train(config, *overrides).wait(timeout=MAX_SECONDS) == 0, log_of(config.parent)


def data(command, *arguments):
    """Exit code and standard output of `longvita data COMMAND`."""
    line = [sys.executable, "-m", "longvita", "data", command, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=MAX_SECONDS, env=environment())
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def accounting_of(output):
    return json.loads((output / "sample_accounting.json").read_text())


def test_the_sample_accounting_is_the_same_at_every_layout_and_over_a_stop(tmp_path):
    """One process without a stop; two, stopped after half of the steps and resumed as one."""
    config = write_films(tmp_path)
    alone = ["layout.processes=1", "data.num_workers=0", f"output={tmp_path / 'alone'}"]
    train(config, *alone)
    train(config, f"training.train_iterations={STEPS // 2}")
    half = accounting_of(tmp_path / "run")
    assert half["sequences"] == 4 * STEPS // 2
    train(config, "layout.processes=1")
    account = accounting_of(tmp_path / "run")
    assert account == accounting_of(tmp_path / "alone")
    assert account["sequences"] == 4 * STEPS
    for one in (half, account):
        assert one["planned"] == one["delivered"] + one["quarantined"]
    broken = account["sources"]["films"]
    assert broken["quarantined"] == {"broken_video": account["quarantined"]}
    # Of six films one breaks, each time that an epoch uses it.
    assert account["quarantined"] > half["quarantined"] > 0
    assert broken["planned"] - broken["repeated"] == 6
    assert account["sources"]["pictures"]["unusable"] == {"missing_file": 1}


def test_index_retry_report_and_view(tmp_path):
    config = write_films(tmp_path)
    code, text = data("index", config, "--json")
    assert code == 0
    assert json.loads(text)["training"]["pictures"]["quarantined"] == {"missing_file": 1}
    train(config, "layout.processes=1", "training.train_iterations=4")
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    assert len(quarantine.read_text().splitlines()) == 2

    picture("rocket").resize((64, 48)).save(tmp_path / "media" / "absent.png")
    code, text = data("retry", quarantine, config)
    assert code == 1
    assert "1 samples can be used now, 1 are left: broken_video 1" in text
    write_video(tmp_path / "media" / "cut.mp4", count=40, fps=4)
    assert data("retry", quarantine, config)[0] == 0
    assert quarantine.read_text() == ""
    assert json.loads(data("index", config, "--json")[1])["training"]["pictures"]["quarantined"] == {}

    page = tmp_path / "report.html"
    assert data("report", config, "--output", page)[0] == 0
    assert page.read_text().count("<img src='data:image/jpeg;base64,") > 4
    code, text = data("view", config, "--sequence", 2, "--replicas", 2)
    assert code == 0
    assert "Step 1 uses it: replica " in text and "<|im_start|>assistant" in text
