"""The folders that a second run of the quickstart keeps or rebuilds, and the report."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from longvita.config import load
from tests.conftest import REPOSITORY
from tools.quickstart import run as quickstart
from tools.quickstart.build import DEPTHS, Sizes
from tools.quickstart.run import STAGES, accuracy, needle_sources, remove_outdated, summary

RUNS = [run for stage in STAGES for run in stage.runs]


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    """The quickstart's folder in a temporary place, with its data and copies of its configs."""
    configs = tmp_path / "configs"
    configs.mkdir()
    for run in RUNS:
        text = (REPOSITORY / quickstart.CONFIGS / f"{run}.yaml").read_text()
        (configs / f"{run}.yaml").write_text(text.replace("../../", f"{REPOSITORY}/configs/"))
    folder = tmp_path / "runs"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "complete.json").write_text("first data")
    monkeypatch.setattr(quickstart, "OUTPUT", folder)
    monkeypatch.setattr(quickstart, "DATA", folder / "data")
    monkeypatch.setattr(quickstart, "CONFIGS", configs)
    return folder


def kept(output: Path) -> set[str]:
    """Fill every folder, remove outdated ones, and return the folders that kept their content."""
    for name in (*RUNS, "export"):
        (output / name).mkdir(exist_ok=True)
        (output / name / "content").touch()
    remove_outdated()
    return {name for name in (*RUNS, "export") if (output / name / "content").exists()}


def test_everything_is_kept_when_nothing_changed(output):
    remove_outdated()
    assert kept(output) == {*RUNS, "export"}


def test_folders_of_unknown_origin_are_rebuilt(output):
    assert kept(output) == set()


def test_other_data_restarts_all_stages(output):
    remove_outdated()
    (output / "data" / "complete.json").write_text("other data")
    assert kept(output) == set()


def test_another_config_restarts_its_stage_and_later_ones(output):
    remove_outdated()
    config = quickstart.CONFIGS / "stage3.yaml"
    steps = load(config).training.train_iterations
    config.write_text(config.read_text().replace(f"train_iterations: {steps}", f"train_iterations: {steps + 1}"))
    assert kept(output) == set(RUNS[: RUNS.index("stage3")])


def test_finished_stages_are_not_trained_again(output, monkeypatch):
    trained = []
    monkeypatch.setattr(quickstart, "train_stages", lambda *stages: trained.extend(stage.name for stage in stages) or 7)
    for run in RUNS:
        (output / run).mkdir()
        done = run in ("stage1", "stage2", "stage3_short")
        (output / run / "report.json").write_text(json.dumps({"reason": "complete" if done else "sigterm"}))
    assert quickstart.train_missing() == 7, "the exit code of the training"
    assert trained == ["quickstart_stage3", "quickstart_stage4"]
    for run in ("stage3", "stage4"):
        (output / run / "report.json").write_text(json.dumps({"reason": "complete"}))
    monkeypatch.setattr(quickstart, "train_stages", None)
    assert quickstart.train_missing() == 0


def test_stage_4_is_scored_by_its_longest_videos():
    longest = max(Sizes().needles)
    counts = {name: [0, 6] for name in needle_sources()}
    counts |= {name: [19, 20] for name in needle_sources()[: len(DEPTHS)]}
    assert all(name.startswith(f"needles_{longest}_") for name in needle_sources()[: len(DEPTHS)])
    assert accuracy(counts, needle_sources()[: len(DEPTHS)]) == pytest.approx(0.95)


def test_summary(output):
    for run, seconds in (("stage3_short", 20.0), ("stage3", 30.0)):
        (output / run).mkdir()
        (output / run / "report.json").write_text(json.dumps({"seconds": seconds, "loss": seconds / 100}))
    found = summary(STAGES[2], {"long_videos": [285, 300]})
    assert found == {
        "name": "stage3", "layout": "CP2 ring", "sequence_length": 512, "seconds": 50.0, "loss": 0.3, "accuracy": 0.95,
        "questions": 300,
    }  # fmt: skip


def test_layouts_and_contexts_change_from_stage_to_stage():
    configs = [load(REPOSITORY / "configs/train/quickstart" / f"{stage.runs[-1]}.yaml") for stage in STAGES]
    layouts = [tuple(c.layout.model_dump(exclude={"processes"}).values()) for c in configs]
    assert len(set(layouts)) == len(STAGES), "each stage reads the checkpoint of another layout"
    assert [c.data.sequence_length for c in configs] == [128, 192, 512, 2048]
    assert len({c.seed for c in configs}) == 1


def test_runs_start_from_the_previous_checkpoint():
    configs = [load(REPOSITORY / "configs/train/quickstart" / f"{run}.yaml") for run in RUNS]
    assert configs[0].checkpoint.initial is None
    for before, after in itertools.pairwise(configs):
        assert after.checkpoint.initial == before.output
