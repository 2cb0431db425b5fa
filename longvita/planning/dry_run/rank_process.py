"""The process in which the ranks of a dry run are built, one after the other: see longvita.planning.dry_run.run."""

from __future__ import annotations

import pickle
import sys
import traceback
from pathlib import Path

from longvita.processes import ignore_known_warnings


def main(call: str, result: str) -> None:
    """Dry-runs what the file `call` asks for and writes the Outcome to `result`."""
    ignore_known_warnings()
    sys.path, settings, world_size, ranks, layer_memory = pickle.loads(Path(call).read_bytes())
    import torch

    from longvita.config.schema import Config
    from longvita.planning.dry_run.meta_platform import MetaPlatform
    from longvita.planning.dry_run.rank import dry_run_rank
    from longvita.planning.dry_run.run import Failure, Outcome

    # Megatron compiles some functions, for nothing here.
    torch.compiler.set_stance("force_eager")
    config = Config.model_validate(settings)
    platform = MetaPlatform(layer_memory)
    platform.activate()
    done, failures = [], []
    for rank in ranks:
        try:
            done.append(dry_run_rank(config, platform, rank, world_size))
        except Exception as error:  # noqa: BLE001 - whatever a launch would fail at is what is looked for
            text = " ".join(f"{type(error).__name__}: {error}".split())
            failures.append(Failure(rank, text, traceback.format_exc()))
    peak = platform.memory()["peak"]
    Path(result).write_bytes(pickle.dumps(Outcome(tuple(done), tuple(failures), peak)))


if __name__ == "__main__":
    main(*sys.argv[1:])
