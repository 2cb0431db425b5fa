"""A Slurm cluster of two nodes, n1 and n2, whose daemons are processes of this machine.

Everything lies in one folder, nothing in /etc: programs of Slurm find the cluster by SLURM_CONF. Both nodes are at
127.0.0.1 and differ by their ports. The daemons stay in the foreground, as children of the process that starts them.
Needs root and the Debian packages slurm-wlm and munge (`bash scripts/setup.sh --system`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path

from longvita.doctor.components import missing_programs
from longvita.processes import die_with_parent
from tests.distributed.helpers import free_port

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel", "squeue")
START_SECONDS = 30
STOP_SECONDS = 10

# munge and not auth/none: on a machine that others use too, nobody else may submit jobs as root.
# cred_expire: a requeued job otherwise waits two minutes before it starts again.
# The GPUs are two devices that every machine has: ranks see which they are given, and use none.
# No cgroups, no accounting, no binding to cores: what the tests look at needs none of them.
CONFIG = """
ClusterName=longvita
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
MailProg=/bin/true
ReturnToService=2
KillWait=10
SlurmdParameters=config_overrides
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
    " Gres=gpu:2 CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=2000\n"
)


def why_not() -> str | None:
    """Why this machine cannot have the cluster; None if it can."""
    search = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    if message := missing_programs(PROGRAMS, search):
        return message
    return None if os.geteuid() == 0 else "the daemons of Slurm need root"


class SlurmCluster:
    """The cluster of one folder; a context manager that starts and stops it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))},
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> SlurmCluster:
        self._write_files()
        try:
            self._start_daemons()
        except BaseException:
            self._end_daemons()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.cancel_all()
        self._end_daemons()

    def run(self, *command: str, timeout: float = 60, **variables: str) -> subprocess.CompletedProcess:
        """Run a program as somebody who is logged in to the cluster would."""
        return subprocess.run(
            command,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def cancel_all(self) -> None:
        """End every job, and wait until the nodes are free."""
        if not self.run("squeue", "--noheader", timeout=STOP_SECONDS).stdout:
            return
        self.run("scancel", "--user=root", "--full", "--signal=KILL", timeout=STOP_SECONDS)
        self.run("scancel", "--user=root", timeout=STOP_SECONDS)
        self._wait(lambda: not self.run("squeue", "--noheader", timeout=STOP_SECONDS).stdout, 2 * STOP_SECONDS)

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job, by name."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def _write_files(self) -> None:
        self.folder.chmod(0o755)
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        host = socket.gethostname().partition(".")[0]
        text = CONFIG.format(host=host, folder=self.folder, controller_port=free_port())
        text += "".join(NODE.format(name=name, host=host, port=free_port()) for name in NODES)
        (self.folder / "slurm.conf").write_text(text)

    def _start_daemons(self) -> None:
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self._start("munged", "--foreground", "--force", f"--log-file={self.folder / 'munged.log'}", *options)
        self._wait((self.folder / "munge.socket").exists, START_SECONDS)
        self._start("slurmctld", "-D")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        # sinfo calls a node idle that cannot be reached: only a step on both of them shows that they work.
        self._wait(self._answers, START_SECONDS)

    def _answers(self) -> bool:
        try:
            return self.run("srun", "--nodes=2", "--quiet", "true", timeout=5).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def _start(self, *command: str) -> None:
        parent = os.getpid()
        with (self.folder / "daemons.log").open("ab") as log:
            daemon = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),
            )
        self._daemons.append(daemon)

    def _wait(self, condition, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in self.folder.glob("*.log"))
                raise RuntimeError(f"the Slurm cluster does not answer; ended: {ended}\n{logs}")
            time.sleep(0.1)

    def _end_daemons(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
