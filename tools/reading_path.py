"""Counts the files that a reader opens to follow a training step, a decode step and an attention call.

    python tools/reading_path.py [--json]

It runs `longvita train` and `longvita generate` in two processes (CP 2, ring) on what `bash scripts/quickstart.sh` left
in runs/quickstart. On rank 0 it notes each function of longvita/ and megatron_patches/ that runs in the third training
step (without the data loader), in the third call of language attention, and in the third decode step. A
file has work of its own when the body of one of these functions is more than a single return or call.
Run in the root of a checkout: that checkout's code is traced.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

FOLDERS = ("longvita", "megatron_patches")
TRAINING, DECODE, ATTENTION = "training step", "decode step", "attention call"
RUNS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {TRAINING: ("train_step",), ATTENTION: ("CoreAttention.forward", "PackedAttention.forward")},
    "generate": {DECODE: ("decode",)},
}
"""The functions at which each path starts, by the command that runs them."""
QUICKSTART = Path("runs/quickstart")
LEFT_OUT = ("Loader.__next__",)
STEADY_CALL = 3
"""Which call is traced: the first ones also build what later ones reuse."""
OPTIMIZED = 0x1
"""Flag of code objects that are functions (not modules or class bodies)."""

Function = tuple[str, int, str]
"""File, first line and qualified name."""


class PathTracer:
    """Collects the functions that run inside one call of each starting function."""

    def __init__(self, root: Path, starts: dict[str, tuple[str, ...]]):
        self.prefixes = tuple(f"{root / folder}{os.sep}" for folder in FOLDERS)
        self.starts = starts
        self.found: dict[str, set[Function]] = {path: set() for path in starts}
        self.calls = dict.fromkeys(starts, 0)
        self.open: dict[str, FrameType] = {}
        self.left_out: FrameType | None = None

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Handle one event of sys.setprofile."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(self.prefixes) and code.co_flags & OPTIMIZED:
            self._enter(frame, code)
        elif event == "return":
            if frame is self.left_out:
                self.left_out = None
            for path in [path for path, start in self.open.items() if start is frame]:
                del self.open[path]

    def _enter(self, frame: FrameType, code: CodeType) -> None:
        if self.left_out is None and code.co_qualname in LEFT_OUT:
            self.left_out = frame
        if self.left_out is not None:
            return
        for path, names in self.starts.items():
            if path == ATTENTION and frame.f_locals.get("packed_seq_params") is None:
                continue  # attention inside tiles
            if code.co_qualname in names and path not in self.open:
                self.calls[path] += 1
                if self.calls[path] == STEADY_CALL:
                    self.open[path] = frame
        for path in self.open:
            self.found[path].add((code.co_filename, code.co_firstlineno, code.co_qualname))


def trace(command: list[str], output: str) -> None:
    """Run a command of longvita in this process and write what was found on rank 0."""
    root = Path.cwd()
    tracer = PathTracer(root, RUNS[command[0]])
    sys.argv = ["longvita", *command]
    sys.path.insert(0, str(root))
    from longvita.cli import main

    if os.environ["RANK"] == "0":
        threading.setprofile(tracer)
        sys.setprofile(tracer)
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
    if os.environ["RANK"] == "0":
        found = {path: sorted(functions) for path, functions in tracer.found.items()}
        Path(output).write_text(json.dumps(found), encoding="utf-8")


def traced(command: list[str]) -> dict[str, list[Function]]:
    """What two processes of a command run, by path."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        call = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--trace", str(found), *command]
        place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        common = {**os.environ, **place, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        processes = [subprocess.Popen(call, env=rank, stdout=subprocess.DEVNULL) for rank in ranks]
        codes = [process.wait() for process in processes]
        if any(codes):
            sys.exit(f"longvita {command[0]} ended with {codes}; run bash scripts/quickstart.sh first")
        return {path: [tuple(one) for one in functions] for path, functions in json.loads(found.read_text()).items()}


@functools.cache
def functions_of(file: str) -> dict[tuple[int, str], ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions of a file by the line where they start, decorators included, and their name."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {(min([node.lineno, *(one.lineno for one in node.decorator_list)]), node.name): node for node in found}


def is_pass_through(function: Function) -> bool:
    """Whether the body of a function is a single expression, such as a property or a call of another function."""
    file, line, name = function
    node = functions_of(file).get((line, name.rpartition(".")[2]))
    if node is None:
        return True
    body = [one for one in node.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    if not body:
        return True
    return len(body) == 1 and isinstance(body[0], ast.Return | ast.Expr | ast.Pass)


def summary(functions: list[Function]) -> dict[str, list[str]]:
    """The files of some functions, and those in which one does more than pass on."""
    root = Path.cwd()
    files = sorted({Path(file).relative_to(root).as_posix() for file, _, _ in functions})
    own = sorted({Path(one[0]).relative_to(root).as_posix() for one in functions if not is_pass_through(one)})
    return {"files": files, "own_work": own}


def main() -> None:
    """Trace both commands and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        train = ["train", "configs/train/quickstart/stage3.yaml", f"output={output}", "training.train_iterations=3"]
        train += ["checkpoint.initial=null", "data.num_workers=0", "data.validation={}", "logging.tensorboard=false"]
        film = min((QUICKSTART / "data" / "videos" / "held_out").rglob("*.mp4"), default=Path("none"))
        generate = ["generate", str(QUICKSTART / "export" / "long_vita"), "--video", str(film), "--question", "digit?"]
        paths = {**traced(train), **traced([*generate, "--layout", "cp=2", "--max-new-tokens", "4"])}
    found = {path: summary(functions) for path, functions in paths.items()}
    if arguments.json:
        print(json.dumps({path.replace(" ", "_"): found[path] for path in (TRAINING, DECODE, ATTENTION)}))
        return
    for path in (TRAINING, DECODE, ATTENTION):
        files, own = found[path]["files"], found[path]["own_work"]
        print(f"{path}: {len(files)} files, {len(own)} with work of their own")
        for file in files:
            print(f"  {file}" + ("" if file in own else " (passes on)"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trace"]:
        trace(sys.argv[3:], sys.argv[2])
    else:
        main()
