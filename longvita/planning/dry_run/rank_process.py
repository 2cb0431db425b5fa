"""The process in which the ranks of a dry run are built one after the other.

Patches change a process, and those of a dry run differ from those of the platform, so the ranks get a separate one.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from longvita.config.schema import Config
from longvita.planning.dry_run.rank_counts import DryRunOutcome, RankFailure
from longvita.platforms.layer_memory import LayerMemory
from longvita.processes import ignore_known_warnings

CALL, OUTCOME, ERRORS = "call.pickle", "outcome.pickle", "errors.txt"
"""Files in the folder of the process."""


def start(
    config: Config, world_size: int, ranks: Sequence[int], layer_memory: LayerMemory, folder: Path
) -> subprocess.Popen:
    """Start the process for `ranks`, with an empty folder for its files."""
    call = (sys.path, config.model_dump(mode="python"), world_size, ranks, layer_memory)
    (folder / CALL).write_bytes(pickle.dumps(call))
    command = [sys.executable, "-m", "longvita.planning.dry_run.rank_process", str(folder)]
    with open(folder / ERRORS, "wb") as errors:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)


def finish(process: subprocess.Popen, folder: Path) -> DryRunOutcome:
    """Wait for the process and return its outcome; a failure of rank -1 if it ended without one."""
    code = process.wait()
    if code == 0 and (folder / OUTCOME).is_file():
        return pickle.loads((folder / OUTCOME).read_bytes())
    output = (folder / ERRORS).read_text(errors="replace")
    last = output.strip().splitlines()[-1:] or ["it printed nothing"]
    return DryRunOutcome(
        failures=(RankFailure(-1, f"the process of the ranks ended with code {code}: {last[0]}", output),)
    )


def main(folder: Path) -> None:
    """Build the ranks of the call in `folder` and write the DryRunOutcome there."""
    ignore_known_warnings()
    sys.path, settings, world_size, ranks, layer_memory = pickle.loads((folder / CALL).read_bytes())
    import torch

    from longvita.planning.dry_run.meta_platform import MetaPlatform
    from longvita.planning.dry_run.rank import dry_run_rank

    # Megatron compiles some functions, which takes time and gains nothing here.
    torch.compiler.set_stance("force_eager")
    config = Config.model_validate(settings)
    platform = MetaPlatform(layer_memory)
    platform.activate()
    done, failures = [], []
    for rank in ranks:
        try:
            done.append(dry_run_rank(config, platform, rank, world_size))
        except Exception as error:  # noqa: BLE001 - any error here is one that a launch would fail with
            text = " ".join(f"{type(error).__name__}: {error}".split())
            failures.append(RankFailure(rank, text, traceback.format_exc()))
    outcome = DryRunOutcome(tuple(done), tuple(failures), platform.memory()["peak"])
    (folder / OUTCOME).write_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
