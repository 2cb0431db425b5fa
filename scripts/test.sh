#!/usr/bin/env bash
# Checks everything: format and lint (ruff), types (mypy), then all tests that this machine can run (pytest).
# Arguments go to pytest, for instance: bash scripts/test.sh tests/unit
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh --system

# One thread per process: tests start up to four processes, and more threads than cores only slow them down.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 # no test downloads anything
python=.venv/bin/python

echo "== format" && $python -m ruff format --check .
echo "== lint" && $python -m ruff check .
echo "== types" && $python -m mypy
# Tests that need an accelerator are left out (pyproject.toml) and listed before pytest's closing line.
echo "== tests"
exec $python -m pytest -q --durations=15 --durations-min=5 -ra "$@"
