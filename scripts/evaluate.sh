#!/usr/bin/env bash
# Video-MME without and with subtitles: bash scripts/evaluate.sh MODEL DATASET [OUTPUT] [options of longvita evaluate]
# After a stop the same command resumes. It starts its own processes (--layout, --replicas); with torchrun or srun, start
# `longvita evaluate` itself instead, once without and once with --subtitles.
set -euo pipefail
if [[ $# -lt 2 ]]; then
    echo "usage: bash scripts/evaluate.sh MODEL DATASET [OUTPUT] [options of longvita evaluate]" >&2
    exit 2
fi
if [[ -n ${RANK:-} || ${SLURM_NTASKS:-1} != 1 && -n ${SLURM_STEP_ID:-} ]]; then
    echo "error: this script must run in one process; fix: start longvita evaluate itself by torchrun or srun" >&2
    exit 2
fi
model=$1 data=$2 output=runs/video_mme
shift 2
if [[ $# -gt 0 && $1 != -* ]]; then
    output=$1
    shift
fi
python="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python"
[[ -x $python ]] || python=python

status=0
for variant in without_subtitles with_subtitles; do
    flag=()
    [[ $variant == with_subtitles ]] && flag=(--subtitles)
    echo "== $variant"
    code=0
    "$python" -m longvita evaluate "$model" --task video_mme --data "$data" --output "$output/$variant" \
        "${flag[@]}" "$@" || code=$?
    [[ $code -gt 1 ]] && exit "$code"
    [[ $code -eq 1 ]] && status=1
done
exit "$status"
