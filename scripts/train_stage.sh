#!/usr/bin/env bash
# Starts a stage for train_stage1.sh to train_stage4.sh, which pass the name of their recipe as the first argument.
#
#   bash scripts/train_stageN.sh [MODEL] [--dry-run] [--here] [--OPTION=VALUE of sbatch ...] [section.field=value ...]
#
#   MODEL      14b (default) or 72b; 14b_ascend and 72b_ascend for devices of 64 GB. They use the recipe whose name ends
#              in _ascend, which recomputes more, if configs/train has one, and otherwise the recipe without it
#   --dry-run  prints the commands without running them (longvita plan RECIPE --dry-run checks the recipe)
#   --here     runs on this machine only, even if Slurm is installed
#
# With sbatch, the recipe is submitted by scripts/slurm/train.sbatch to as many nodes of 8 devices as its layout needs.
# Without it, the recipe runs on this machine if 8 devices are enough; for several machines see docs/train.md. The data
# files are indexed before a rank takes a device.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." # the paths in a recipe are relative to it

readonly DEVICES_HERE=8

fail() {
    printf 'train_stage: %s\n' "$*" >&2
    exit 2
}

stage=${1:-} size='' ascend='' dry_run=false here=false options=()
[[ -n $stage ]] || fail "no stage; fix: run one of scripts/train_stage1.sh to train_stage4.sh"
shift
while [[ $# -gt 0 ]]; do
    case $1 in
    -h | --help) sed -n '4,12s/^# \{0,1\}//p' scripts/train_stage.sh && exit 0 ;;
    --dry-run) dry_run=true ;;
    --here) here=true ;;
    -*) options+=("$1") ;;
    *=*) break ;;
    14b) size='' ascend='' ;;
    72b) size=_72b ascend='' ;;
    14b_ascend) size='' ascend=_ascend ;;
    72b_ascend) size=_72b ascend=_ascend ;;
    *) fail "$1 is not a model; fix: 14b, 72b, 14b_ascend or 72b_ascend" ;;
    esac
    shift
done
config=configs/train/$stage$size$ascend.yaml
[[ -f $config ]] || config=configs/train/$stage$size.yaml

if [[ $here == false ]] && command -v sbatch >/dev/null; then
    [[ $dry_run == false ]] || options+=(--dry-run)
    exec bash scripts/slurm/train.sbatch "${options[@]}" "$config" "$@"
fi

[[ ${#options[@]} -eq 0 ]] || fail "${options[*]}: options of sbatch, but the run is on this machine; fix: leave them out"
python=${LONGVITA_PYTHON:-.venv/bin/python}
[[ -n ${LONGVITA_PYTHON:-} || -x $python ]] || python=python
command -v "$python" >/dev/null || fail "$python is not a program on this machine; fix: bash scripts/setup.sh, or LONGVITA_PYTHON=PATH"
code=0
checked=$("$python" -m longvita train --check "$config" "$@") || code=$?
processes=$(sed -n 's/^processes=//p' <<<"$checked")
if [[ $dry_run == true && -n $checked ]]; then
    echo "train_stage: would start $processes processes on this machine, with these variables unless the shell sets them"
    sed -n 's/^export/ &/p' <<<"$checked"
    echo "train_stage: by" && printf ' %q' "$python" -m longvita train "$config" "$@" && echo
fi
[[ $code -eq 0 ]] || exit "$code"
((processes <= DEVICES_HERE)) || fail "$config needs $processes devices, $((processes / DEVICES_HERE)) nodes of" \
    "$DEVICES_HERE; fix: Slurm, torchrun on each node (docs/train.md), or layout.FIELD=SIZE for a smaller layout"
[[ $dry_run == true ]] || exec "$python" -m longvita train "$config" "$@"
