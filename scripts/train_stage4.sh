#!/usr/bin/env bash
# Stage 4, 1M tokens: trains projector and language model; 14B on eight nodes of 8 devices, 72B on 64.
# bash scripts/train_stage4.sh --help lists the options; the recipe is configs/train/stage4_1m.yaml.
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_stage.sh" stage4_1m "$@"
