#!/usr/bin/env bash
# Checks the project: format and lint (ruff), types (mypy), then tests (pytest).
#   bash scripts/test.sh            the tests that this machine can run, without those that take minutes each
#   bash scripts/test.sh --full     those too: before a release, or after a change of what they test
#   bash scripts/test.sh --fast     the tests of FAST_TESTS below: under three minutes in all on two cores
#   bash scripts/test.sh ARGUMENT   other arguments are those of pytest, for example tests/unit/config or -k ring
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Tests of single modules, without those that start many processes or read many videos.
FAST_TESTS=(
    tests/unit/test_house.py tests/unit/test_layers.py tests/unit/test_words.py tests/unit/test_readme.py
    tests/unit/test_structure_page.py tests/unit/test_scripts.py tests/unit/config tests/unit/parallel tests/unit/attention tests/unit/patches
    tests/unit/checkpoint tests/unit/training tests/unit/verify tests/unit/inference tests/unit/evaluation
    tests/unit/platforms/cpu tests/unit/stubs tests/unit/model tests/unit/planning
    tests/unit/data/formats tests/unit/data/media tests/unit/data/packing
)

case ${1:-} in
-h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
--fast) set -- "${FAST_TESTS[@]}" "${@:2}" ;;
esac

bash scripts/setup.sh --system

# One thread per process: tests start up to four processes, and more threads than cores only slow them down.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 # tests download nothing
python=.venv/bin/python

echo "== format" && $python -m ruff format --check .
echo "== lint" && $python -m ruff check .
echo "== types" && $python -m mypy
# Tests that need an accelerator or take minutes are deselected (pyproject.toml) and listed before pytest's last line.
echo "== tests"
exec $python -m pytest -q --durations=15 --durations-min=5 -ra "$@"
