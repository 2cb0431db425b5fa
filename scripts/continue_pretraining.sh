#!/usr/bin/env bash
# Continues pretraining on your own data: bash scripts/continue_pretraining.sh CONFIG [section.field=value ...]
# Indexes the data, writes a page about it (data.html in the output folder), and trains. After a stop the same command
# resumes from the newest checkpoint, at any layout. It starts its own processes; for torchrun or srun, run
# `longvita data index` first, then start `longvita train` by torchrun or srun.
set -euo pipefail
if [[ $# -lt 1 ]]; then
    echo "usage: bash scripts/continue_pretraining.sh CONFIG [section.field=value ...]" >&2
    exit 2
fi
if [[ -n ${RANK:-} || ${SLURM_NTASKS:-1} != 1 && -n ${SLURM_STEP_ID:-} ]]; then
    echo "error: this script must run in one process; fix: longvita data index CONFIG, then longvita train by torchrun or srun" >&2
    exit 2
fi
python="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python"
[[ -x $python ]] || python=python

"$python" -m longvita data index "$@"
"$python" -m longvita data report "$@"
exec "$python" -m longvita train "$@"
