import datetime
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from longvita import processes
from longvita.processes import EXIT_REFUSED, LaunchError, current_place, launch, raise_on_all_ranks

TARGETS = "tests.unit.launcher_targets"


def clear_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name)


def wait_for(condition, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start_parent(target: str, folder: Path) -> subprocess.Popen:
    arguments = (target, {"folder": str(folder)}, 2)
    call = f"import sys; from longvita.processes import launch; sys.exit(launch(*{arguments!r}))"
    return subprocess.Popen([sys.executable, "-c", call])


def test_processes_find_each_other(tmp_path, monkeypatch):
    clear_launchers(monkeypatch)
    assert launch(f"{TARGETS}:write_rank", {"folder": str(tmp_path)}, 2) == 0
    assert (tmp_path / "0").read_text() == "0 2 1"
    assert (tmp_path / "1").read_text() == "1 2 1"


@pytest.fixture
def taken_ports() -> Iterator[list[socket.socket]]:
    """Sockets that other processes listen on: they accept connections, and never answer."""
    sockets: list[socket.socket] = []
    yield sockets
    for one in sockets:
        one.close()


def take_port(port: int, sockets: list[socket.socket]) -> int:
    """Listen on a port, 0 for a free one, and return its number."""
    sockets.append(socket.create_server(("127.0.0.1", port)))
    return sockets[-1].getsockname()[1]


def test_no_other_process_can_take_the_port_before_rank_0_binds_it(tmp_path, monkeypatch, taken_ports):
    clear_launchers(monkeypatch)
    monkeypatch.setattr(processes, "FAILURE_GRACE_SECONDS", 0.5)
    monkeypatch.setenv("MASTER_PORT", str(take_port(0, taken_ports)))
    start = subprocess.Popen

    def take_port_and_start(command, env) -> subprocess.Popen:
        if len(taken_ports) == 1 and "MASTER_PORT" in env:
            take_port(int(env["MASTER_PORT"]), taken_ports)
        return start(command, env=env)

    monkeypatch.setattr(processes.subprocess, "Popen", take_port_and_start)
    assert launch(f"{TARGETS}:write_rank", {"folder": str(tmp_path)}, 2) == 0
    assert (tmp_path / "0").read_text() == "0 2 1"


def test_every_rank_knows_the_port_once_it_has_joined(tmp_path, monkeypatch):
    clear_launchers(monkeypatch)
    assert launch(f"{TARGETS}:write_port", {"folder": str(tmp_path)}, 2) == 0
    ports = [int((tmp_path / name).read_text()) for name in ("0.port", "1.port")]
    assert ports[0] == ports[1] > 0


def test_a_launchers_port_that_is_taken_is_named(monkeypatch, taken_ports):
    clear_launchers(monkeypatch)
    port = take_port(0, taken_ports)
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(LaunchError, match=f"MASTER_PORT {port}: another process.*fix: set MASTER_PORT"):
        processes.init_distributed("gloo", lambda local_rank: None)
    assert not dist.is_initialized()


def test_a_rank_does_not_wait_for_rank_0_without_end(tmp_path, monkeypatch):
    clear_launchers(monkeypatch)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv(processes.PORT_FILE, str(tmp_path / "port"))
    with pytest.raises(TimeoutError, match="rank 0 has not joined within 1 seconds"):
        processes.init_distributed("gloo", lambda local_rank: None, datetime.timedelta(seconds=1))


def test_one_process_runs_in_place(tmp_path, monkeypatch):
    clear_launchers(monkeypatch)
    assert launch(f"{TARGETS}:write_rank", {"folder": str(tmp_path)}, 1) == 0
    assert (tmp_path / "0").read_text() == "0 1 0"


def test_failure_of_one_ends_the_others_with_its_code(tmp_path, monkeypatch):
    clear_launchers(monkeypatch)
    monkeypatch.setattr(processes, "FAILURE_GRACE_SECONDS", 0.5)
    assert launch(f"{TARGETS}:fail_on_rank_one", {"folder": str(tmp_path), "code": 3}, 2) == 3
    assert not alive(int((tmp_path / "0.pid").read_text()))


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_that_all_ranks_raise_is_printed_once(capfd, monkeypatch, count):
    clear_launchers(monkeypatch)
    assert launch(f"{TARGETS}:refuse_on_all_ranks", {}, count) == EXIT_REFUSED
    assert capfd.readouterr().err.splitlines().count("error: the same on all") == 1
    assert not dist.is_initialized()


@pytest.mark.parametrize(("name_ranks", "text"), [(True, "error: rank 1: found by 1"), (False, "error: found by 1")])
def test_an_error_of_one_rank_is_raised_on_all(capfd, monkeypatch, name_ranks, text):
    clear_launchers(monkeypatch)
    payload = {"refusing": 1, "name_ranks": name_ranks}
    assert launch(f"{TARGETS}:refuse_on_rank_one", payload, 2) == EXIT_REFUSED
    assert capfd.readouterr().err.splitlines().count(text) == 1


def test_a_file_that_one_rank_may_not_read_is_printed_by_it(capfd, monkeypatch):
    clear_launchers(monkeypatch)
    assert launch(f"{TARGETS}:read_without_permission_on_rank_one", {}, 2) == EXIT_REFUSED
    assert "error: [Errno 13] Permission denied: 'held_back.jsonl'" in capfd.readouterr().err


def test_an_error_of_a_rank_alone_is_raised_as_it_is():
    def refuse() -> None:
        raise LaunchError("no")

    with pytest.raises(LaunchError, match="^no$"):
        raise_on_all_ranks(refuse, error=LaunchError)
    assert raise_on_all_ranks(lambda: 3) == 3


def test_sigterm_reaches_every_process(tmp_path, monkeypatch):
    clear_launchers(monkeypatch)
    parent = start_parent(f"{TARGETS}:wait_for_sigterm", tmp_path)
    wait_for(lambda: (tmp_path / "0.pid").exists() and (tmp_path / "1.pid").exists())
    parent.terminate()
    assert parent.wait(timeout=60) == 7


def test_no_orphans_after_kill_9(tmp_path, monkeypatch):
    clear_launchers(monkeypatch)
    parent = start_parent(f"{TARGETS}:wait_for_sigterm", tmp_path)
    wait_for(lambda: (tmp_path / "0.pid").exists() and (tmp_path / "1.pid").exists())
    parent.send_signal(signal.SIGKILL)
    assert parent.wait(timeout=60) == -signal.SIGKILL
    for rank in range(2):
        wait_for(lambda pid=int((tmp_path / f"{rank}.pid").read_text()): not alive(pid), seconds=10)


def test_refuses_no_processes():
    with pytest.raises(LaunchError, match="processes is 0"):
        launch(f"{TARGETS}:write_rank", {}, 0)


def test_place_under_torchrun(monkeypatch):
    clear_launchers(monkeypatch)
    variables = {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "MASTER_ADDR": "node", "MASTER_PORT": 99}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    place = current_place()
    assert (place.rank, place.world_size, place.local_rank) == (3, 4, 1)
    assert (place.master_address, place.master_port) == ("node", 99)
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(LaunchError, match="MASTER_PORT is missing"):
        current_place()


@pytest.mark.parametrize(
    ("nodes", "first"), [("n[1-2]", "n1"), ("gpu[003-005,9]", "gpu003"), ("a1,b2", "a1"), ("host", "host")]
)
def test_place_under_srun(monkeypatch, nodes, first):
    clear_launchers(monkeypatch)
    variables = {"PROCID": 1, "NTASKS": 2, "LOCALID": 0, "STEP_ID": 0, "JOB_ID": 12345, "NNODES": 2}
    monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    place = current_place()
    assert (place.rank, place.world_size, place.local_rank) == (1, 2, 0)
    assert (place.master_address, place.master_port) == (first, 22345)
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert current_place().master_port == 22442, "two steps of a job run side by side"
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "5")
    assert (current_place().master_address, current_place().master_port) == ("10.0.0.1", 5)


def test_a_batch_script_is_not_an_srun_task(monkeypatch):
    clear_launchers(monkeypatch)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert current_place() is None


def test_a_shell_that_srun_started_alone_is_not_a_task_of_a_run(monkeypatch):
    clear_launchers(monkeypatch)
    for name, value in {"PROCID": 0, "NTASKS": 1, "LOCALID": 0, "STEP_ID": 0, "JOB_ID": 7}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert current_place() is None


def test_defaults_give_way_to_what_the_user_has_set(tmp_path, monkeypatch):
    clear_launchers(monkeypatch)
    monkeypatch.setenv("LONGVITA_TEST_SET", "user")
    monkeypatch.setenv("LONGVITA_TEST_FREE", "to be put back")
    monkeypatch.delenv("LONGVITA_TEST_FREE")
    defaults = {"LONGVITA_TEST_SET": "default", "LONGVITA_TEST_FREE": "default"}
    for count in (2, 1):
        assert launch(f"{TARGETS}:write_variables", {"folder": str(tmp_path)}, count, defaults) == 0
        assert (tmp_path / "variables").read_text() == "user default"
    assert processes.with_defaults(defaults) == {"LONGVITA_TEST_SET": "user", "LONGVITA_TEST_FREE": "default"}
