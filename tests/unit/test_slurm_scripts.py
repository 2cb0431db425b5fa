"""Decisions of scripts/slurm/train.sbatch and scripts/train_stage*.sh, with stubs of Slurm's programs.

tests/e2e/test_slurm.py runs them on a real Slurm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROGRAMS = {
    # The ranks: their arguments and variables; a checkpoint, and the exit code that the test asks for.
    "srun": """
if [[ " $* " == *" data index "* ]]; then printf '%s\\n' "$@" >"$HERE/index.txt"; exit "$INDEX"; fi
printf '%s\\n' "$@" >"$HERE/ranks.txt"; env >"$HERE/variables.txt"
[[ -z ${SAVES:-} ]] || mkdir -p "$HERE/out/checkpoints/$SAVES"
[[ -z ${STALLS:-} ]] || echo '{"time": "now", "event": "stall", "step": 9}' >>"$HERE/out/events.jsonl"
echo "1: RuntimeError: no more" >"$HERE/out/logs/7/node000-a.log"
exit "$CODE"
""",
    "scontrol": """
case $1:$2 in
show:hostnames) printf 'a1\\na2\\n' ;;
show:node) echo "   NodeAddr=address-of-$3 NodeHostName=a1 Port=1" ;;
requeue:*) echo "$2" >"$HERE/requeued.txt" ;;
esac
""",
    "squeue": 'echo "$STATE"',
    "sbatch": """printf '%s\\n' "$@" >"$HERE/submitted.txt"; echo "Submitted batch job 7" """,
    "python": """
[[ $CHECK == 0 ]] || { echo "error: layout.tensor_parallel" >&2; exit "$CHECK"; }
printf 'name=stub\\nplatform=%s\\nprocesses=%s\\noutput=%s\\n' "$PLATFORM" "$PROCESSES" "$HERE/out"
""",
}


class Folder:
    """A folder with the stubs, in which the scripts run."""

    def __init__(self, path: Path):
        self.path = path
        (path / "bin").mkdir()
        for name, text in PROGRAMS.items():
            (path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (path / "bin" / name).chmod(0o755)
        shutil.copy(REPOSITORY / "scripts/slurm/train.sbatch", path / "slurm_script")

    def run(self, *command: str, **variables: object) -> subprocess.CompletedProcess:
        """Run a command with the stubs first on PATH."""
        plain = {name: os.environ[name] for name in ("HOME",) if name in os.environ}
        common = {"HERE": self.path, "CODE": 0, "STATE": "RUNNING", "CHECK": 0, "PLATFORM": "cpu", "PROCESSES": 8}
        common["INDEX"] = 0
        common |= {"PATH": f"{self.path / 'bin'}:/usr/bin:/bin", "LONGVITA_PYTHON": self.path / "bin" / "python"}
        environment = {**plain, **{name: str(value) for name, value in (common | variables).items()}}
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def job(self, *arguments: str, **variables: object) -> subprocess.CompletedProcess:
        """Run the script as the batch script of job 7: two nodes of four ranks."""
        slurm = {"JOB_ID": 7, "NNODES": 2, "NTASKS_PER_NODE": 4, "CPUS_ON_NODE": 32, "JOB_NODELIST": "a[1-2]"}
        slurm["SUBMIT_DIR"] = str(self.path)
        named = {f"SLURM_{name}": value for name, value in slurm.items()}
        return self.run("bash", str(self.path / "slurm_script"), *arguments, **named, **variables)

    def read(self, name: str) -> list[str]:
        """Lines that a stub has written."""
        return (self.path / name).read_text().splitlines()


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_ranks_of_a_job(folder):
    result = folder.job("my.yaml", "training.train_iterations=3")
    assert (result.returncode, "complete" in result.stdout) == (0, True), result.stderr
    ranks = folder.read("ranks.txt")
    assert ranks[-5:] == ["-m", "longvita", "train", "my.yaml", "training.train_iterations=3"]
    assert {"--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=8", "--kill-on-bad-exit=1"} < set(ranks)
    assert f"--output={folder.path}/out/logs/7/node%3n-%N.log" in ranks
    variables = folder.read("variables.txt")
    assert {"MASTER_ADDR=address-of-a1", "MASTER_PORT=20007", "OMP_NUM_THREADS=8", "PYTHONUNBUFFERED=1"} < set(
        variables
    )


def test_data_files_are_indexed_on_all_nodes_before_the_ranks(folder):
    folder.job("my.yaml", "seed=3")
    index = folder.read("index.txt")
    assert index[-6:] == ["-m", "longvita", "data", "index", "my.yaml", "seed=3"]
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=32"} < set(index)
    assert not [word for word in index if word.startswith("--gpus")]


@pytest.mark.parametrize(("code", "is_requeued"), [(2, False), (143, True)])
def test_without_an_index_no_rank_is_started(folder, code, is_requeued):
    """A job that is stopped by its time limit resumes the index in its next start."""
    result = folder.job("my.yaml", INDEX=code)
    assert result.returncode == 2
    assert f"the data files are not indexed (srun's exit code: {code})" in result.stderr
    assert (folder.path / "requeued.txt").exists() == is_requeued
    assert not (folder.path / "ranks.txt").exists()


def test_a_job_that_only_indexes(folder):
    result = folder.job("--index", "my.yaml", "seed=3")
    assert result.returncode == 0, result.stderr
    assert folder.read("index.txt")[-4:] == ["data", "index", "my.yaml", "seed=3"]
    assert not (folder.path / "ranks.txt").exists()


def test_training_waits_for_a_job_that_indexes(folder):
    (folder.path / "bin" / "sbatch").write_text(
        """#!/usr/bin/env bash\nprintf '%s\\n' "$@" >>"$HERE/submitted.txt"; echo "7;cluster" """
    )
    result = submit(folder, "--index-job=--partition=cpu --nodes=4", "--time=9", "my.yaml", "seed=1")
    assert result.returncode == 0, result.stderr
    script, submitted = str(REPOSITORY / "scripts/slurm/train.sbatch"), folder.read("submitted.txt")
    index = ["--parsable", "--ntasks-per-node=1", "--job-name=stub_index", "--partition=cpu", "--nodes=4", script]
    assert submitted[:9] == [*index, "--index", "my.yaml", "seed=1"]
    training = ["--nodes=1", "--ntasks-per-node=8", "--job-name=stub", "--time=9"]
    training += ["--dependency=afterok:7", "--kill-on-invalid-dep=yes"]
    assert submitted[9:] == [*training, script, "my.yaml", "seed=1"]


def test_ranks_request_the_gpus_of_their_node(folder):
    folder.job("my.yaml")
    assert not [word for word in folder.read("ranks.txt") if word.startswith("--gpus")]
    folder.job("my.yaml", SLURM_GPUS_ON_NODE=8)
    ranks = folder.read("ranks.txt")
    assert ranks.index("--gpus-per-node=8") < ranks.index("-m")


def test_threads_are_those_of_the_user_or_of_the_platform(folder):
    folder.job("my.yaml", OMP_NUM_THREADS=3)
    assert "OMP_NUM_THREADS=3" in folder.read("variables.txt")
    folder.job("my.yaml", PLATFORM="other")
    assert not [line for line in folder.read("variables.txt") if line.startswith("OMP_NUM_THREADS")]


@pytest.mark.parametrize("code", [75, 77])
def test_a_stopped_and_saved_run_is_requeued(folder, code):
    result = folder.job("my.yaml", CODE=code, SAVES="step_00000009")
    assert (result.returncode, folder.read("requeued.txt")) == (code, ["7"])
    assert "saved" in result.stdout and "step_00000009" in result.stdout


@pytest.mark.parametrize("code", [78, 137])
def test_a_job_whose_rank_stood_still_is_requeued(folder, code):
    """Also where srun reports the signal by which it ended that rank; an event of an earlier start does not count."""
    result = folder.job("my.yaml", CODE=code, SAVES="step_00000009", STALLS=1)
    assert (result.returncode, folder.read("requeued.txt")) == (code, ["7"])
    assert "a rank stood still" in result.stdout
    (folder.path / "requeued.txt").unlink()
    again = folder.job("my.yaml", CODE=code, SAVES="step_00000019")
    assert "a rank has failed" in again.stdout and not (folder.path / "requeued.txt").exists()


def test_a_job_that_stands_still_without_a_new_checkpoint_is_not_requeued(folder):
    result = folder.job("my.yaml", CODE=78, STALLS=1)
    assert "a rank stood still" in result.stdout and "stopped before a step was saved" in result.stdout
    assert not (folder.path / "requeued.txt").exists()


def test_an_index_that_fails_long_before_the_time_limit_is_not_requeued(folder):
    """A share that fails ends the others by SIGTERM, whose code srun reports."""
    for seconds, is_requeued in ((7200, False), (300, True)):
        folder.job("my.yaml", INDEX=143, SLURM_JOB_END_TIME=int(time.time()) + seconds)
        assert (folder.path / "requeued.txt").exists() == is_requeued


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CODE": 0, "SAVES": "step_00000009"}, "complete"),
        ({"CODE": 76, "SAVES": "step_00000009"}, "stopped by SIGINT and saved"),
        ({"CODE": 75}, "stopped before a step was saved"),
        ({"CODE": 75, "SAVES": "step_00000009", "STATE": "COMPLETING"}, "the job is COMPLETING"),
        ({"CODE": 75, "SAVES": "step_00000009", "STATE": ""}, "the job is over"),
        ({"CODE": 143, "SAVES": "step_00000009"}, "a rank has failed"),
    ],
)
def test_other_runs_are_not_requeued(folder, variables, message):
    result = folder.job("my.yaml", **variables)
    assert result.returncode == variables["CODE"]
    assert message in result.stdout
    assert not (folder.path / "requeued.txt").exists()


def test_a_rank_that_fails_has_its_error_in_the_job_s_log(folder):
    result = folder.job("my.yaml", CODE=1)
    assert result.returncode == 1
    assert "1: RuntimeError: no more" in result.stdout


def test_a_job_refuses_before_its_ranks(folder):
    result = folder.job("my.yaml", CHECK=2)
    assert result.returncode == 2
    assert "layout.tensor_parallel" in result.stderr and "refused before a rank was started" in result.stderr
    assert not (folder.path / "ranks.txt").exists()


def submit(folder: Folder, *arguments: str, **variables: object) -> subprocess.CompletedProcess:
    return folder.run("bash", "scripts/slurm/train.sbatch", *arguments, **variables)


@pytest.mark.parametrize(
    ("options", "processes", "nodes", "ranks"),
    [
        ([], 64, 8, 8),
        ([], 2, 1, 2),
        (["--ntasks-per-node=4"], 64, 16, 4),
        (["--nodes=4"], 32, 4, 8),
        (["--nodes=2", "--ntasks-per-node=1"], 2, 2, 1),
    ],
)
def test_nodes_that_are_asked_for(folder, options, processes, nodes, ranks):
    result = submit(folder, *options, "--partition=p", "my.yaml", "seed=1", PROCESSES=processes)
    assert result.returncode == 0, result.stderr
    submitted = folder.read("submitted.txt")
    assert submitted[:4] == [f"--nodes={nodes}", f"--ntasks-per-node={ranks}", "--job-name=stub", "--partition=p"]
    assert submitted[4:] == [str(REPOSITORY / "scripts/slurm/train.sbatch"), "my.yaml", "seed=1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no CONFIG"),
        (["-N", "2", "my.yaml"], "-N: fix: write options of sbatch as --name=value"),
        (["--ntasks-per-node=3", "my.yaml"], "8 processes do not fill nodes of 3"),
        (["--nodes=abc", "my.yaml"], "--nodes=abc: must be an integer of at least 1"),
        (["--nodes", "2", "my.yaml"], "--nodes: fix: --nodes=NUMBER"),
    ],
)
def test_what_is_not_submitted(folder, arguments, message):
    result = submit(folder, *arguments)
    assert (result.returncode, message in result.stderr) == (2, True)
    assert not (folder.path / "submitted.txt").exists()


def test_a_missing_python_is_an_error_and_no_other_one_is_used(folder):
    result = submit(folder, "my.yaml", LONGVITA_PYTHON="/nowhere/python")
    assert (result.returncode, "LONGVITA_PYTHON=/nowhere/python is not a program" in result.stderr) == (2, True)
    result = folder.run("bash", "scripts/train_stage1.sh", "--here", LONGVITA_PYTHON="/nowhere/python")
    assert (result.returncode, "/nowhere/python is not a program on this machine" in result.stderr) == (2, True)
    assert not (folder.path / "submitted.txt").exists()


def test_a_refused_config_is_not_submitted(folder):
    result = submit(folder, "my.yaml", CHECK=2)
    assert (result.returncode, result.stderr) == (2, "error: layout.tensor_parallel\n")
    assert not (folder.path / "submitted.txt").exists()


@pytest.mark.parametrize(
    ("stage", "model", "config", "nodes"),
    [
        (1, [], "stage1_align", 1),
        (2, ["14b_ascend"], "stage2_general_ascend", 1),
        (3, ["14b"], "stage3_128k", 2),
        (4, ["14b"], "stage4_1m", 8),
        (4, ["72b_ascend"], "stage4_1m_72b", 64),
        (1, ["72b_ascend"], "stage1_align_72b_ascend", 8),
        (1, ["14b_ascend"], "stage1_align", 1),
    ],
)
def test_stages_in_a_dry_run(folder, stage, model, config, nodes):
    """By the real check, which prints the recipe and then the files that this machine lacks for it."""
    script = f"scripts/train_stage{stage}.sh"
    result = folder.run(
        "bash", script, *model, "--dry-run", "--time=60", "data.tokenizer=absent", LONGVITA_PYTHON=sys.executable
    )
    assert f" sbatch --nodes={nodes} --ntasks-per-node=8 --job-name=long_vita_" in result.stdout, result.stderr
    assert f"-m longvita train configs/train/{config}.yaml data.tokenizer=absent" in result.stdout
    assert f"-m longvita data index configs/train/{config}.yaml data.tokenizer=absent" in result.stdout
    assert " srun " in result.stdout and "MASTER_ADDR=" in result.stdout
    assert (result.returncode, "data.tokenizer = absent" in result.stderr) == (2, True)
    assert not (folder.path / "submitted.txt").exists()


def test_a_stage_on_this_machine(folder):
    result = folder.run("bash", "scripts/train_stage1.sh", "--here", "--dry-run", "seed=3")
    assert (result.returncode, "would start 8 processes on this machine" in result.stdout) == (0, True), result.stderr
    result = folder.run("bash", "scripts/train_stage4.sh", "--here", PROCESSES=64)
    assert (result.returncode, "needs 64 devices, 8 nodes of 8; fix:" in result.stderr) == (2, True)
    (folder.path / "bin" / "sbatch").unlink()
    result = folder.run("bash", "scripts/train_stage1.sh", "14c")
    assert (result.returncode, "14c is not a model" in result.stderr) == (2, True)
