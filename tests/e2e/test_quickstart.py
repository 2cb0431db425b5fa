"""What the quickstart promises: accuracy on digits never trained on, and exports that equal the model."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import QUICKSTART_LIMIT

LEAST_ACCURACY = {"stage1": 0.95, "stage2": 0.90, "stage3": 0.90, "stage4": 0.90}
QUESTIONS = {"stage1": 1000, "stage2": 1000, "stage3": 300, "stage4": 100}
LARGEST_FALL = 0.06
"""Of stage 2's accuracy, when its questions are asked again after stage 4."""
LARGEST_LOGIT_DIFFERENCE = 2e-4

pytestmark = pytest.mark.timeout(QUICKSTART_LIMIT)


@pytest.fixture(scope="module")
def report(quickstart) -> dict:
    return json.loads((quickstart / "report.json").read_text())


def test_each_stage_learns_its_task(report):
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert {name: stage["questions"] for name, stage in stages.items()} == QUESTIONS
    accuracies = {name: stage["accuracy"] for name, stage in stages.items()}
    assert all(accuracies[name] >= least for name, least in LEAST_ACCURACY.items()), accuracies


def test_each_stage_has_its_layout(report):
    assert [stage["layout"] for stage in report["stages"]] == ["TP2", "DP2", "CP2 ring", "CP2 Ulysses"]


def test_needles_are_found_by_the_evaluation_command(quickstart):
    """Three lengths, five depths, ten digits; figures beside stage 4's own, with room for one film's noise."""
    scores = json.loads((quickstart / "needle" / "scores.json").read_text())
    assert scores["overall"]["asked"] == 150
    assert scores["overall"]["accuracy"] >= 0.8


def test_short_context_is_kept_after_the_long(report):
    before = next(stage["accuracy"] for stage in report["stages"] if stage["name"] == "stage2")
    assert report["short_context_accuracy_after"] >= before - LARGEST_FALL


def test_exports_say_how_long_the_videos_of_training_were(quickstart):
    for layout in ("long_vita", "internvl"):
        config = json.loads((quickstart / "export" / layout / "config.json").read_text())
        assert config["media_limits"] == {
            "max_num_tiles": 1,
            "max_num_frames": 330,
            "max_fps": 1.0,
            "frame_sampling": "published",
        }


def test_exports_equal_the_model(report):
    assert report["export_max_abs_logit_difference"] < LARGEST_LOGIT_DIFFERENCE
