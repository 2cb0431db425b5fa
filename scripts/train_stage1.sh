#!/usr/bin/env bash
# Stage 1, alignment: trains only the projector, with 32K tokens; 14B on one node of 8 devices, 72B on eight.
# bash scripts/train_stage1.sh --help lists the options; the recipe is configs/train/stage1_align.yaml.
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_stage.sh" stage1_align "$@"
