"""What a command does before its ranks start, and which process prints its errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from longvita import cli
from tests.conftest import REPOSITORY

GOLDEN = "tests/golden/model"
STOP_AT_LAUNCH = """
import sys
from longvita import processes

def launch(*arguments):
    print("megatron:", sorted(name for name in sys.modules if name.split(".")[0] == "megatron")[:3])
    return 0

processes.launch = launch
from longvita.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "command",
    [
        ("verify", GOLDEN, "--golden", GOLDEN, "--layout", "tp=2", "--platform", "cpu"),
        ("convert", "--from", GOLDEN, "--to", "{target}", "--format", "checkpoint", "--platform", "cpu"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_imports_no_megatron_before_its_ranks_start(command: tuple[str, ...], tmp_path: Path):
    """A platform may have to come first; a rank that runs in place has the command's imports."""
    words = [word.format(target=tmp_path / "new") for word in command]
    result = subprocess.run(
        [sys.executable, "-c", STOP_AT_LAUNCH, *words], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert "megatron: []" in result.stdout, result.stdout + result.stderr[-2000:]


IMPORTED = """
import sys
from longvita.cli import main
try:
    main(sys.argv[1:])
finally:
    print("large:", sorted({"torch", "transformers", "megatron"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("--version",), "longvita 0."),
        (("-h",), "Usage"),
        (("generate", "-h"), "--question"),
        (("generate", "no model", "--question", "Why?"), "error: no model is neither a folder nor a Hub id"),
        (("generate", GOLDEN, "--question", "Why?", "--seed", "-1"), "error: --seed is -1, but must be"),
        (("generate", GOLDEN, "--question", "no.txt"), "error: the question's file no.txt does not exist"),
        (("generate", GOLDEN, "--question", "Why?", "--image", "no.png"), "error: picture no.png does not exist"),
        (("generate", GOLDEN, "--question", "Why?", "--video", "no.mp4"), "error: video no.mp4 does not exist"),
        (("generate", GOLDEN, "--question", "Why?", "--show-frames", "no.txt"), "error: --show-frames no.txt is not"),
        (("chat", GOLDEN, "--layout", "two"), "error: --layout: 'two' is not valid"),
        (("evaluate", GOLDEN, "--task", "needle", "--data", "no", "--output", "x"), "error: --data no is not a folder"),
        (("verify", "no model", "--golden", GOLDEN), "error: no model is neither a folder nor a Hub id"),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, tuple) else "",
)
def test_what_needs_no_model_is_refused_before_a_large_library_is_imported(command: tuple[str, ...], message: str):
    """Importing torch alone takes more than a second."""
    result = subprocess.run([sys.executable, "-c", IMPORTED, *command], capture_output=True, text=True, cwd=REPOSITORY)
    assert message in result.stdout + result.stderr
    assert "large: []" in result.stdout, result.stdout + result.stderr[-2000:]
    assert result.returncode == (2 if "error" in message else 0)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("generate", GOLDEN, "--question", "Why?", "--config=~/no.yaml"), "--config HOME/no.yaml is not a file"),
        (("verify", GOLDEN, "--golden=~/no"), "HOME/no/golden.safetensors is not there"),
        (("convert", f"--from={GOLDEN}", "--to=~/full"), "--to HOME/full is a file"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_home_is_expanded_in_the_value_of_an_option(
    command: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "full").touch()
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 2
    assert message.replace("HOME", str(tmp_path)) in capsys.readouterr().err


def test_incomplete_variables_of_a_launcher_are_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", GOLDEN, "--golden", GOLDEN])
    assert ended.value.code == 2
    assert "environment variable LOCAL_RANK is missing" in capsys.readouterr().err
