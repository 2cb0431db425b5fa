import json
from collections import Counter

import pytest

from longvita.config.flops import Workload, training_flops
from longvita.data.audit.sample_accounting import SampleAccounting
from longvita.training.metrics import Metrics, duration, read_metrics
from longvita.training.run_report import decode_failures_text, running_mean, write_report
from longvita.training.step import BatchFigures, LossFigures, StepFigures
from tests.tiny import tiny_config

WORK = Workload(tokens=100, attention_pairs=2000, loss_tokens=40, tiles=3)


def figures(loss):
    return StepFigures(LossFigures(loss, 40, {"words": loss}), BatchFigures(WORK, 28), grad_norm=1.5, lr=1e-3)


def config(**logging):
    return tiny_config(logging={"tensorboard": False, **logging}, training={"train_iterations": 5})


def write_steps(output, settings, start, stop):
    with Metrics(output, settings, start, devices=2, peak_flops=1e9) as metrics:
        for step in range(start + 1, stop + 1):
            metrics.step(step, figures(float(step)), seconds=0.5, waited=0.125)
        metrics.validation({"held": 2.0})


def test_steps_are_written_with_their_rates(tmp_path):
    write_steps(tmp_path, config(), 0, 2)
    first, second, evaluation = read_metrics(tmp_path)
    assert [first["step"], second["step"]] == [1, 2]
    assert (first["loss"], first["tokens"], first["tiles"], first["padding_tokens"]) == (1.0, 100, 3, 28)
    assert first["tokens_per_second"] == pytest.approx(200)
    assert first["tiles_per_second"] == pytest.approx(6)
    flops = training_flops(config().model, WORK, ["vision", "projector", "language"])
    assert first["mfu"] == pytest.approx(flops / 0.5 / 2e9)
    assert first["data_wait_fraction"] == pytest.approx(0.25)
    assert evaluation == {"step": 2, "validation": {"held": 2.0}}


def test_an_interval_sums_its_steps_and_the_last_is_never_left_out(tmp_path):
    write_steps(tmp_path, config(interval=2), 0, 5)
    steps = [line for line in read_metrics(tmp_path) if "loss" in line]
    assert [(line["step"], line["tokens"], line["seconds"]) for line in steps] == [
        (2, 200, 1.0),
        (4, 200, 1.0),
        (5, 100, 0.5),
    ]


def test_a_resumed_run_has_each_step_once(tmp_path):
    write_steps(tmp_path, config(), 0, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss"')  # cut by a crash
    write_steps(tmp_path, config(), 2, 3)
    assert [line["step"] for line in read_metrics(tmp_path) if "loss" in line] == [1, 2, 3]


def test_the_report_covers_all_processes_of_the_run(tmp_path):
    write_steps(tmp_path, config(), 0, 2)
    write_steps(tmp_path, config(), 2, 5)
    write_report(tmp_path, config(), 5, "complete")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["reason"], report["iterations"], report["tokens"], report["seconds"]) == ("complete", 5, 500, 2.5)
    assert report["loss"] == pytest.approx(3.0)
    assert report["validation"] == {"held": 2.0}
    assert report["quarantined"] == {"samples": 0, "reasons": {}, "sources": {}}
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_a_report_without_steps(tmp_path):
    write_report(tmp_path, config(), 0, "complete")
    assert json.loads((tmp_path / "report.json").read_text())["loss"] is None
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (3600, "1h00m"), (7620, "2h07m")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_running_mean():
    assert running_mean([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    "planned, failed, limits, warns",
    [
        (1000, 51, {}, True),
        (1000, 50, {}, False),
        (99, 99, {}, False),
        (1000, 51, {"max_quarantined": 0.06}, False),
        (1000, 1, {"max_quarantined": 0.0}, True),
    ],
)
def test_samples_that_fail_when_they_are_decoded_are_warned_of(planned, failed, limits, warns):
    settings = tiny_config(data={"dataset": {"web": {"data_paths": ["a.jsonl"], **limits}}})
    counts = {("web", "planned"): planned, ("web", "broken_video"): failed, ("web", "delivered"): planned - failed}
    text = decode_failures_text(settings, SampleAccounting().plus([Counter(counts)]))
    says = f"{failed:,} of the {planned:,} samples of source 'web' so far could not be read or decoded (broken_video"
    assert text.startswith(says) if warns else text == ""
