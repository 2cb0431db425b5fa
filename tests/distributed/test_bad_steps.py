"""A gradient that is not finite on one rank: no rank applies it, and the run continues as training.bad_steps says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longvita.data.audit.sample_accounting import SampleAccounting
from longvita.training.events import read_events
from longvita.training.metrics import read_metrics
from longvita.training.step import TrainingError
from longvita.training.trainer import TrainingRun
from tests.distributed.helpers import run_distributed
from tests.distributed.training_runs import tensors, training_run, unequal
from tests.e2e.training_material import write_run

STEPS, SAVED, BAD = 7, 3, 5
"""Steps of a run, between two checkpoints, and the bad step."""
BATCH = 2
PARAMETER = "mlp.linear_fc2.weight"
BAD_RANK = 1


def poison(run: TrainingRun, rank: int, steps: list[int]) -> None:
    """Make one gradient of this rank infinite in some steps, in a middle element."""
    named = [(name, one) for model in run.state.models for name, one in model.named_parameters()]
    parameters = [one for name, one in named if "language_model" in name and name.endswith(PARAMETER)]
    if rank == BAD_RANK:

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            if run.state.iteration + 1 in steps:
                gradient = gradient.clone()
                gradient.view(-1)[gradient.numel() // 2] = float("inf")
            return gradient

        parameters[-1].register_hook(spoil)


def policies(rank: int, world: int, config_file: str, layout: str) -> list:
    undisturbed = training_run(config_file, "undisturbed", layout, STEPS)
    undisturbed.state.history.passed_over.add((BAD - 1) * BATCH)
    undisturbed.run(lambda _: "")
    wanted, found = tensors(undisturbed.state), []
    for policy in ("skip", "roll_back"):
        run = training_run(config_file, policy, layout, STEPS, policy=policy)
        poison(run, rank, [BAD])
        assert run.run(lambda _: "") == 0
        counts: SampleAccounting = run.state.sample_accounting
        different = unequal(wanted, tensors(run.state))
        found.append((different, run.state.history.to_facts(), counts == undisturbed.state.sample_accounting))
    return found


@pytest.mark.parametrize("layout", ["dp2", "tp2_sp", "pp2"])
def test_a_bad_step_leaves_no_trace_in_the_weights(layout, tmp_path):
    config_file = write_run(tmp_path, checkpoint={"save_interval": SAVED}, data={"num_workers": 0})
    for results in run_distributed(policies, 2, str(config_file), layout):
        for different, history, same_samples in results:
            assert different == []
            assert history["bad_steps"] == 1 and history["bad_in_row"] == 0
            assert len(history["norms"]) == STEPS - 1
            assert same_samples
        assert [history["passed_over"] for _, history, _ in results] == [[], [(BAD - 1) * BATCH]]
    for policy in ("skip", "roll_back"):
        lines = read_metrics(tmp_path / policy)
        assert [line["step"] for line in lines if "loss" in line] == [n for n in range(1, STEPS + 1) if n != BAD]
        assert [line["step"] for line in lines if "skipped" in line] == [BAD]
        (event,) = read_events(tmp_path / policy)
        assert (event["event"], event["step"], event["action"]) == ("bad_step", BAD, policy)
        assert event["problem"] == "the gradient norm is inf"
        assert event["first_not_finite"][str(BAD_RANK)].endswith(PARAMETER)
        samples = {Path(path).name: lines for path, lines in event["samples"].items()}
        assert samples and samples.keys() <= {"words.jsonl", "pictures.jsonl"}
    if layout == "dp2":
        assert list(event["first_not_finite"]) == [str(BAD_RANK)], "the other replica's own gradients were finite"


def limits(rank: int, world: int, config_file: str) -> list:
    found = []
    for name, policy, bad_steps, steps in (
        ("row", "skip", {"max_in_row": 1}, [2, 3]),
        ("total", "skip", {"max_total": 1}, [2, 4]),
        ("stop", "stop", {}, [2]),
    ):
        run = training_run(config_file, name, "dp2", STEPS, policy=policy, **bad_steps)
        poison(run, rank, steps)
        with pytest.raises(TrainingError) as caught:
            run.run(lambda _: "")
        again = training_run(config_file, name, "dp2", STEPS, policy=policy, **bad_steps)
        assert (again.state.iteration, again.state.consumed_sequences) == (steps[-1], BATCH * steps[-1])
        assert unequal(tensors(run.state), tensors(again.state)) == []
        again.run(lambda _: "")
        found.append((str(caught.value), again.state.iteration, again.state.history.bad_steps))
    return found


def test_a_run_ends_at_its_limits_and_continues_after_the_step(tmp_path):
    config_file = write_run(tmp_path, data={"num_workers": 0})
    for (row, *after_row), (total, *after_total), (stop, *after_stop) in run_distributed(limits, 2, str(config_file)):
        assert row.startswith("step 3 is bad: the gradient norm is inf. It is bad step 2 in a row and 2 of the stage")
        assert total.startswith("step 4 is bad: the gradient norm is inf. It is bad step 1 in a row and 2 of the stage")
        assert "policy stop" in stop
        assert (after_row, after_total, after_stop) == ([STEPS, 2], [STEPS, 2], [STEPS, 1])


def spike(rank: int, world: int, config_file: str) -> tuple:
    run = training_run(config_file, "spike", "dp2", STEPS, spike_factor=1e-3, spike_window=8)
    code = run.run(lambda _: "")
    return code, run.state.history.to_facts()


def test_a_spike_is_a_bad_step(tmp_path):
    """With a factor that far below 1, each step after the first is one; the config refuses such a factor."""
    config_file = write_run(tmp_path, training={"bad_steps": {"max_in_row": STEPS}}, data={"num_workers": 0})
    for code, history in run_distributed(spike, 1, str(config_file)):
        assert code == 0
        assert (len(history["norms"]), history["bad_steps"], history["bad_in_row"]) == (1, STEPS - 1, STEPS - 1)
    assert "times" in read_events(tmp_path / "spike")[0]["problem"]
