#!/usr/bin/env bash
# Stage 3, 128K tokens: trains projector and language model; 14B on two nodes of 8 devices, 72B on sixteen.
# bash scripts/train_stage3.sh --help lists the options; the recipe is configs/train/stage3_128k.yaml.
exec bash "$(dirname "${BASH_SOURCE[0]}")/train_stage.sh" stage3_128k "$@"
