#!/usr/bin/env bash
# Continues pretraining on one's own data: bash scripts/continue_pretraining.sh CONFIG [section.field=value ...]
# Indexes the data, writes a page about it (data.html in the output folder), trains. Stopped and started again, it goes on
# from the newest checkpoint, at any layout. It starts its own processes; under torchrun or srun index first, then give
# them `longvita train` itself.
set -euo pipefail
if [[ $# -lt 1 ]]; then
    echo "usage: bash scripts/continue_pretraining.sh CONFIG [section.field=value ...]" >&2
    exit 2
fi
if [[ -n ${RANK:-} || ${SLURM_NTASKS:-1} != 1 && -n ${SLURM_STEP_ID:-} ]]; then
    echo "error: indexing is one process's work; let torchrun or srun start longvita train itself after it" >&2
    exit 2
fi
python="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python"
[[ -x $python ]] || python=python

"$python" -m longvita data index "$@"
"$python" -m longvita data report "$@"
exec "$python" -m longvita train "$@"
