"""`longvita plan CONFIG --dry-run` with its files, and the problems of ranks that fail."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from longvita.commands.support import dry_run_tables
from longvita.config import ConfigError, load_with_origins
from longvita.planning.dry_run.plan_comparison import Comparison, compare_with_plan
from longvita.planning.dry_run.problems import field_named_in, merge_failures
from longvita.planning.dry_run.rank_counts import ActivationBytes, RankFailure
from longvita.planning.dry_run.run import DryRun, chosen_ranks, dry_run
from longvita.planning.hardware import HARDWARE
from tests.conftest import REPOSITORY
from tests.e2e.training_material import environment, write_run
from tests.tiny import tiny_config


def plan(config: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "longvita", "plan", str(config), "--dry-run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def test_a_run_that_is_ready(tmp_path: Path) -> None:
    done = plan(write_run(tmp_path), "platform=cpu", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["problems"] == [] and [rank["rank"] for rank in data["ranks"]] == [0, 1]
    assert data["ranks"][0]["parameters"] > 10_000
    assert {"forward", "backward", "gradients", "optimizer"} >= {
        call["phase"] for call in data["ranks"][0]["collectives"]
    } - {"step"}
    assert not (tmp_path / "run").exists()


def test_all_problems_at_once_with_their_lines(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    (tmp_path / "words.jsonl").unlink()
    (tmp_path / "held_out.jsonl").write_text("broken\n")
    done = plan(config, "checkpoint.initial=absent/in/here", "--devices", "3", "model.language.vocab_size=64")
    assert done.returncode == 2
    assert "training.global_batch_size = 2: is not a multiple of micro batch x DP = 1 x 3" in done.stdout
    assert "run.yaml:" in done.stdout and "there is no file" in done.stdout
    assert "override: checkpoint.initial = absent/in/here" in done.stdout
    assert "held_out.jsonl: its first 1 samples have errors" in done.stdout
    assert "(override)" in done.stdout and "tokens with the added ones" in done.stdout
    assert "5 problems" in done.stdout


def test_ranks_beyond_the_world_are_refused() -> None:
    with pytest.raises(ConfigError, match="--rank: 2 not among the ranks 0 to 1"):
        dry_run(tiny_config(), 2, [2], with_files=False)


def test_the_platform_of_the_run_refuses(tmp_path: Path) -> None:
    ascend = HARDWARE["ascend-910b-64"].layer_memory.platform
    layout = ["layout.processes=null", "layout.tensor_parallel=1", "layout.context_parallel=2", "layout.ulysses=2"]
    done = plan(write_run(tmp_path), *layout, f"platform={ascend}", "training.precision=bf16", "--no-files")
    assert done.returncode == 2 and f"override: layout.ulysses = 2: is refused on {ascend}" in done.stdout, done.stdout
    assert "1 problem" in done.stdout


def test_fp8_is_computed_in_bf16(tmp_path: Path) -> None:
    fp8 = tiny_config(training={"precision": "bf16", "fp8": "tensorwise"})
    found = dry_run(fp8, 1, with_files=False)
    assert not found.problems and found.ranks[0].activations[0].saved > 0
    assert any("bf16" in note for note in found.notes)


def test_plan_and_count_agree_where_nothing_but_the_projector_learns() -> None:
    """For text and for frames."""
    done = plan(REPOSITORY / "configs/train/stage1_align.yaml", "--no-files", "--json", "--rank", "0")
    compared = {one["name"]: one["error"] for one in json.loads(done.stdout)["comparison"]}
    exact = ("parameters", "parameter_bytes", "gradient_bytes", "optimizer_bytes")
    assert [compared[name] for name in exact] == [0, 0, 0, 0]
    assert all(abs(compared[f"activations of {load}"]) < 0.1 for load in ("video", "text"))


@pytest.mark.parametrize("recomputed", [0, 1])
def test_plan_and_count_agree_on_an_interleaved_pipeline(recomputed: int) -> None:
    language = {"num_layers": 8, "hidden_size": 128, "ffn_hidden_size": 384}
    recompute = {"granularity": "full" if recomputed else "none", "num_layers": 1, "vision": bool(recomputed)}
    config = tiny_config(
        model={"language": language},
        data={"sequence_length": 512},
        layout={"pipeline_parallel": 2, "virtual_pipeline": 2},
        training={"global_batch_size": 16, "precision": "bf16", "recompute": recompute},
    )
    ranks = dry_run(config, 2, [0, 1], with_files=False).ranks
    errors = {(one.rank, one.name): one.error for one in compare_with_plan(config, 2, HARDWARE["h100-80"], ranks)}
    assert all(abs(errors[rank, "activations of text"]) < 0.1 for rank in (0, 1))
    assert all(errors[rank, name] == 0 for rank in (0, 1) for name in ("gradient_bytes", "optimizer_bytes"))


LANGUAGE = {"num_layers": 4, "hidden_size": 128, "ffn_hidden_size": 384}


def count_on_ascend(trainable: list[str], **changes: bool) -> tuple[Comparison, ActivationBytes]:
    """Plan and count of text on a rank with sequence parallelism; changes: to what the layers of Ascend keep."""
    config = tiny_config(
        model={"language": LANGUAGE},
        data={"sequence_length": 512},
        layout={"tensor_parallel": 2, "sequence_parallel": True},
        training={"precision": "bf16", "trainable": trainable},
    )
    ascend = HARDWARE["ascend-910b-64"]
    hardware = dataclasses.replace(ascend, layer_memory=dataclasses.replace(ascend.layer_memory, **changes))
    ranks = dry_run(config, 2, [0], with_files=False, hardware=hardware).ranks
    (compared,) = (one for one in compare_with_plan(config, 2, hardware, ranks) if one.name == "activations of text")
    return compared, next(one for one in ranks[0].activations if one.contents.name == "text")


def test_plan_and_count_agree_on_ascends_gather_buffer() -> None:
    """At the peak, in the head, the buffer is live; a new tensor for gathered rows is not."""
    (buffer, _), (new, _) = (
        count_on_ascend(["projector", "language"], **changes) for changes in ({}, {"gather_buffer": False})
    )
    assert abs(buffer.error) < 0.05
    rows = 512 * LANGUAGE["hidden_size"] * 2
    assert buffer.planned - new.planned == buffer.counted - new.counted == rows


def test_plan_and_count_agree_on_ascends_frozen_layers() -> None:
    """Row-parallel layers keep their inputs, of which attention's output is kept by attention too."""
    (compared, kept), (_, without) = (
        count_on_ascend(["projector"], **changes) for changes in ({}, {"keeps_frozen_row_inputs": False})
    )
    assert abs(compared.error) < 0.05
    assert kept.saved - without.saved == LANGUAGE["num_layers"] * 512 * LANGUAGE["ffn_hidden_size"] // 2 * 2


def test_ranks_of_the_first_middle_and_last_stage() -> None:
    assert chosen_ranks(tiny_config(layout={"pipeline_parallel": 2}), 8) == [0, 7]
    assert chosen_ranks(tiny_config(layout={"pipeline_parallel": 4}), 32) == [0, 16, 31]
    assert chosen_ranks(tiny_config(), 1) == [0]


def test_an_error_of_several_ranks_is_one_problem_at_its_field() -> None:
    same = "ValueError: layout.context_parallel 3 is odd"
    problems = merge_failures(
        [RankFailure(0, same, ""), RankFailure(5, "RuntimeError: no", ""), RankFailure(9, same, "")]
    )
    assert [(problem.message, problem.field) for problem in problems] == [
        (f"ranks 0, 9: {same}", "layout.context_parallel"),
        ("rank 5: RuntimeError: no", ""),
    ]


def test_fields_that_an_error_names() -> None:
    assert field_named_in("FlagError: training.megatron.nonsense: no such field") == "training.megatron.nonsense"
    assert field_named_in("KeyError: torch.backends in data.sequence_length") == "data.sequence_length"
    assert field_named_in("training.nothing.here and more.of_it") == ""


def test_figures_next_to_those_of_the_plan() -> None:
    config = tiny_config()
    found = dry_run(config, 1, with_files=False)
    compared = compare_with_plan(config, 1, HARDWARE["local"], found.ranks)
    state = ["parameters", "parameter_bytes", "gradient_bytes", "optimizer_bytes"]
    assert [one.name for one in compared] == [*state, "activations of video", "activations of text"]
    assert compared[0].counted == found.ranks[0].parameters and [one.error for one in compared[:4]] == [0] * 4
    assert -1 < Comparison(0, "activations of text", 1, compared[-1].counted).error < 0
    text = shown(found, compared)
    assert "Plan and count" in text and "nothing found that a launch would fail at" in text


def shown(found: DryRun, comparisons: list) -> str:
    console = Console(file=io.StringIO(), width=140)
    dry_run_tables.show(found, console, comparisons)
    return console.file.getvalue()


def test_layers_of_accelerators_keep_less_than_plain_ones(tmp_path: Path) -> None:
    config = tiny_config(training={"precision": "bf16"})
    fused = dry_run(config, 1, with_files=False).ranks[0]
    plain = dry_run(config.model_copy(update={"platform": "cpu"}), 1, with_files=False).ranks[0]
    assert fused.parameters == plain.parameters and fused.shapes == plain.shapes
    assert all(a.saved < b.saved for a, b in zip(fused.activations, plain.activations, strict=True))


def test_layers_of_two_accelerators_keep_different_tensors(tmp_path: Path) -> None:
    """Ascend's attention keeps more for each row, and its rotary embedding cosines and sines."""
    config = tiny_config(training={"precision": "bf16", "trainable": ["language"]})
    saved = {}
    for hardware in (HARDWARE["h100-80"], HARDWARE["ascend-910b-64"]):
        rank = dry_run(config, 1, with_files=False, hardware=hardware).ranks[0]
        text = next(each for each in rank.activations if each.contents.name == "text")
        saved[hardware.layer_memory.name] = text.saved
    language, rows = config.model.language, text.contents.tokens
    statistics = 60 * language.num_attention_heads * rows
    angles = 2 * 2 * language.head_dim * 2 * rows
    assert saved["mindspeed"] - saved["transformer_engine"] == language.num_layers * (statistics + angles)


def test_offloaded_inputs_do_not_stay(tmp_path: Path) -> None:
    recompute = {"granularity": "full", "method": "uniform", "num_layers": 1}
    kept = dry_run(tiny_config(training={"recompute": recompute}), 1, with_files=False).ranks[0]
    offloaded = dry_run(tiny_config(training={"recompute": recompute | {"offload": True}}), 1, with_files=False).ranks[
        0
    ]
    for before, after in zip(kept.activations, offloaded.activations, strict=True):
        assert before.saved - after.saved >= after.offloaded > 0
        assert after.peak <= before.peak  # With so few layers, head and vision tower take most.


def test_the_default_is_what_train_would_start(tmp_path: Path) -> None:
    loaded = load_with_origins(write_run(tmp_path))
    assert dry_run(loaded.config, 2, [1]).ranks[0].places["dp"] == 1


def test_a_run_that_by_plan_does_not_fit_is_no_success(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    enough, little = plan(config, "platform=cpu"), plan(config, "platform=cpu", "--memory", "1MiB")
    assert enough.returncode == 0 and "It fits: " in enough.stdout
    assert little.returncode == 1 and "of 1.0 MiB: It does not fit" in little.stdout
    assert "nothing found that a launch would fail at" in little.stdout
