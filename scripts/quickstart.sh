#!/usr/bin/env bash
# Installs the project, trains a small Long-VITA in four stages on real digits, exports it, and generates answers about a
# picture and a video.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1
exec .venv/bin/python -W ignore -m tools.quickstart.run "$@"
