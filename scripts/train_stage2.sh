#!/usr/bin/env bash
# Stage 2, general knowledge: trains all parts, with 16K tokens; 14B on one node of 8 devices, 72B on eight.
# bash scripts/train_stage2.sh --help lists the options; the recipe is configs/train/stage2_general.yaml.
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_stage.sh" stage2_general "$@"
