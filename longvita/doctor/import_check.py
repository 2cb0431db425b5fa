"""Import packages in a process of their own: what is installed may still fail, end the process, or not return."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from longvita.doctor.components import Component
from longvita.platforms.requirements import MachineRequirement

_Checked = TypeVar("_Checked", Component, MachineRequirement)

TIMEOUT_SECONDS = 120
"""For all imports of one process."""
_CHILD = """
import importlib, json, os, sys, traceback

LIMIT = 300  # characters of an error
# Only results go to the real stdout; what packages print goes to stderr.
results = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
sys.path[:], modules = json.loads(sys.argv[1])
for module in modules:
    try:
        importlib.import_module(module)
        fault = ""
    except BaseException as error:
        text = " ".join(str(error).split())
        fault = f"{type(error).__name__}: {text}" if text else type(error).__name__
        fault = fault[:LIMIT] + " ..." * (len(fault) > LIMIT)
        file = traceback.extract_tb(error.__traceback__)[-1].filename
        if not file.startswith("<"):
            fault += f" (in {'/'.join(file.split(os.sep)[-2:])})"
    print(json.dumps(fault), file=results)
    if fault:
        break
results.flush()
os._exit(0)
"""


def checked(parts: Sequence[_Checked]) -> list[_Checked]:
    """The parts, each package that works as far as is known imported: with its fault if that fails."""
    faults = import_faults(tuple(part.module for part in parts if part.module and part.works))
    broken = [part.works and part.module in faults for part in parts]
    return [
        replace(part, fault=f"cannot be imported: {faults[part.module]}") if fails else part
        for part, fails in zip(parts, broken, strict=True)
    ]


@functools.cache
def import_faults(modules: tuple[str, ...]) -> dict[str, str]:
    """For each module that cannot be imported the reason, in one line; the others are absent.

    The modules are imported in their order, as in a new process of this environment: after a failure the next ones get
    a process of their own.
    """
    faults: dict[str, str] = {}
    left = list(modules)
    while left:
        passed, fault = _import_until_fault(left)
        if fault:
            faults[left[passed]] = fault
        left = left[passed + 1 :] if fault else []
    return faults


def _import_until_fault(modules: Sequence[str]) -> tuple[int, str]:
    """Import modules in one process: the number that passed, and the reason that the next one did not, if any."""
    command = [sys.executable, "-c", _CHILD, json.dumps([sys.path, modules])]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=TIMEOUT_SECONDS)
        output, end = done.stdout, f"its import ended the process with {_ending(done.returncode)}"
    except subprocess.TimeoutExpired as expired:
        output, end = expired.stdout or b"", f"its import did not end within {TIMEOUT_SECONDS} s"
    ended = [json.loads(line) for line in output.decode().splitlines()]
    if ended and ended[-1]:
        return len(ended) - 1, ended[-1]
    return len(ended), end if len(ended) < len(modules) else ""


def _ending(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
