"""`scripts/slurm/train.sbatch` on a real Slurm of two nodes, one rank a node: the quickstart's stages, shortened."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from longvita.checkpoint.step_folders import step_folder, step_folders
from longvita.config import load, to_yaml
from longvita.training.metrics import read_metrics
from tests.conftest import REPOSITORY
from tests.e2e.training_material import log_of, losses_of, start
from tests.slurm_cluster import SlurmCluster, why_not
from tools.quickstart.build import Sizes, build

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

SCRIPT = "scripts/slurm/train.sbatch"
MAX_SECONDS = 200
STEPS = {"stage1": 12, "stage4": 4}
FEW = Sizes(
    variants=1,
    train={"digit": 200, "pictures": 40, "short_videos": 1, "long_videos": 2, "needles": 3},
    held_out={"digit": 20},
    needles={330: 1},
)
# Both stages in the same two processes of one machine, as the quickstart runs them.
ON_ONE_MACHINE = """
import sys
from longvita.config import load
from longvita.commands.train import train_stages

sys.exit(train_stages(*(load(path) for path in sys.argv[1:])))
"""


@dataclass
class Jobs:
    """Jobs of a cluster, submitted from the repository's root; their logs lie in a folder."""

    cluster: SlurmCluster
    folder: Path

    def submit(self, *arguments: str) -> str:
        """Submit the script by sbatch itself, as two nodes of one rank; the job's number."""
        log = f"--output={self.folder / '%j.out'}"
        command = ("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", log, SCRIPT, *arguments)
        result = self.run(*command)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def run(self, *command: str) -> subprocess.CompletedProcess:
        """Run a command in the repository's root with the tests' Python."""
        variables = {"LONGVITA_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        return self.cluster.run("env", "-C", str(REPOSITORY), *command, **variables)

    def log(self, job: str) -> str:
        """The job's own log and those of its ranks."""
        paths = [self.folder / f"{job}.out", *sorted(self.folder.glob(f"*/logs/{job}/*.log"))]
        return "\n".join(f"{path}:\n{path.read_text(errors='replace')}" for path in paths if path.is_file())

    def wait(self, job: str, condition: Callable[[], bool], what: str) -> None:
        """Wait until something has happened, while the job is on."""
        deadline = time.monotonic() + MAX_SECONDS
        while not condition():
            state = self.cluster.job(job)["JobState"]
            assert state in ("PENDING", "RUNNING", "COMPLETING"), f"{state} before {what}\n{self.log(job)}"
            assert time.monotonic() < deadline, f"no {what}\n{self.log(job)}"
            time.sleep(0.1)

    def end(self, job: str) -> dict[str, str]:
        """Wait until the job has ended; what Slurm says of it."""
        deadline = time.monotonic() + MAX_SECONDS
        while (found := self.cluster.job(job))["JobState"] in ("PENDING", "RUNNING", "COMPLETING"):
            assert time.monotonic() < deadline, self.log(job)
            time.sleep(0.1)
        return found


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    # Not below pytest's folder: the path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, SlurmCluster(Path(folder)) as cluster:
        yield Jobs(cluster, tmp_path_factory.mktemp("jobs"))


@pytest.fixture(autouse=True)
def free_nodes(jobs: Jobs) -> Iterator[None]:
    """A test that fails leaves no job behind that the next one would wait for."""
    yield
    jobs.cluster.cancel_all()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the quickstart's samples."""
    folder = tmp_path_factory.mktemp("quickstart") / "data"
    build(folder, FEW, processes=1)
    return folder


def write_stage(stage: str, output: Path, data: Path, initial: Path | None = None) -> Path:
    """Write a config of the quickstart's, shortened; its path."""
    changes = [
        f"output={output}",
        f"training.train_iterations={STEPS[stage]}",
        f"checkpoint.initial={initial or 'null'}",
    ]
    changes += ["logging.interval=1", "logging.tensorboard=false"]
    config = load(REPOSITORY / "configs" / "train" / "quickstart" / f"{stage}.yaml", changes)
    written = output.with_suffix(".yaml")
    written.write_text(to_yaml(config).replace("runs/quickstart/data", str(data)))
    return written


@pytest.fixture(scope="module")
def on_one_machine(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both stages, run in two processes of the launcher's own, never stopped."""
    folder = tmp_path_factory.mktemp("one_machine")
    first = write_stage("stage1", folder / "stage1", data)
    second = write_stage("stage4", folder / "stage4", data, initial=folder / "stage1")
    process = start([sys.executable, "-c", ON_ONE_MACHINE, str(first), str(second)], folder)
    assert process.wait(timeout=MAX_SECONDS) == 0, log_of(folder)
    return folder


def figures_of(output: Path) -> list[dict]:
    """What the steps and evaluations of a run computed."""
    kept = ("step", "loss", "grad_norm", "lr", "tokens", "tiles", "validation")
    return [{name: line[name] for name in kept if name in line} for line in read_metrics(output)]


def test_two_nodes_compute_what_one_machine_does_also_when_stopped_and_put_back(jobs, data, on_one_machine):
    """To the last bit. Stage 1 gets the signal of a time limit; stage 4 starts from its weights."""
    first = write_stage("stage1", jobs.folder / "stage1", data)
    job = jobs.submit(str(first))
    jobs.wait(job, lambda: max(losses_of(jobs.folder / "stage1"), default=0) >= 3, "third step")
    assert jobs.cluster.run("scancel", "--signal=TERM", job).returncode == 0
    ended = jobs.end(job)
    log = jobs.log(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    stopped = re.search(r"stopped by sigterm after step (\d+), saved", log)
    assert stopped and 3 <= int(stopped[1]) < STEPS["stage1"], log
    assert f"resumes from {step_folder(jobs.folder / 'stage1' / 'checkpoints', int(stopped[1]))}" in log
    assert log.index("start 1, 2 nodes of 1 ranks: n[1-2]") < log.index("back into the queue") < log.index("start 2, ")
    assert len(list((jobs.folder / "stage1" / "logs" / job).glob("node00[01]-*.log"))) == 2
    for before in log.split("the ranks: ")[:2]:  # Before the ranks of each start, which find everything indexed.
        assert "0: share 1 of 2 is indexed" in before and "1: share 2 of 2 is indexed" in before
        assert "every data file has its index" in before
    assert log.count("without a current index") == 2

    second = write_stage("stage4", jobs.folder / "stage4", data, initial=jobs.folder / "stage1")
    job = jobs.submit(str(second))
    assert jobs.end(job)["JobState"] == "COMPLETED", jobs.log(job)
    for stage, steps in STEPS.items():
        ours, theirs = figures_of(jobs.folder / stage), figures_of(on_one_machine / stage)
        assert ours == theirs, stage
        assert [line["step"] for line in ours if "loss" in line] == list(range(1, steps + 1))
        report = json.loads((jobs.folder / stage / "report.json").read_text())
        assert (report["reason"], report["iterations"]) == ("complete", steps)


def rank_process(job: str, rank: int) -> tuple[int, list[str]]:
    """The process of a rank of a job on this machine, and its variables; step 0 indexes the data."""
    wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}"}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if wanted <= set(variables) and command[1:4] == ["-m", "longvita", "train"] and "SLURM_STEP_ID=1" in variables:
            return int(folder.name), variables
    raise AssertionError(f"job {job} has no rank {rank} here")


def test_it_submits_itself_and_a_killed_rank_ends_the_job_and_is_named(jobs, data):
    config = write_stage("stage1", jobs.folder / "killed", data)
    options = ("--nodes=2", "--ntasks-per-node=1", f"--output={jobs.folder / '%j.out'}")
    result = jobs.run("bash", SCRIPT, *options, str(config), "training.train_iterations=100000")
    assert result.returncode == 0, result.stderr
    job = result.stdout.split()[-1]
    jobs.wait(job, lambda: bool(losses_of(jobs.folder / "killed")), "first step")
    process, variables = rank_process(job, 1)
    assert {"SLURM_STEP_GPUS=0,1", "SLURM_GPUS_ON_NODE=2"} <= set(variables), "the GPUs of a node are its ranks'"
    os.kill(process, signal.SIGKILL)
    ended, log = jobs.end(job), jobs.log(job)
    assert (ended["JobName"], ended["NumNodes"], ended["NumTasks"]) == ("quickstart_stage1", "2", "2")
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), log
    assert "srun: error: n2: task 1: Killed" in log
    assert "a rank has failed, the first one that srun names above" in log
    assert not step_folders(jobs.folder / "killed" / "checkpoints")


def test_a_config_that_does_not_fit_is_refused_before_the_job(jobs, data):
    config = write_stage("stage1", jobs.folder / "refused", data)
    nodes = ("--nodes=2", "--ntasks-per-node=1")
    result = jobs.run("bash", SCRIPT, *nodes, str(config), "layout.tensor_parallel=3")
    assert result.returncode == 2
    assert "layout.tensor_parallel" in result.stderr
    result = jobs.run("bash", SCRIPT, *nodes, str(config), "data.tokenizer=absent")
    assert (result.returncode, "data.tokenizer = absent" in result.stderr) == (2, True)
    assert jobs.cluster.run("squeue", "--noheader").stdout == ""

    # Past the check here, the job makes it before a rank starts.
    job = jobs.submit(str(config), "layout.tensor_parallel=3")
    ended, log = jobs.end(job), jobs.log(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), log
    assert "layout.tensor_parallel" in log and "refused before a rank was started" in log
    assert not (jobs.folder / "refused").exists()
