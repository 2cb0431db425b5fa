"""Generates Long-VITA's answer about a picture or a video, with the options of the published demo.

python tools/video_audio_demo.py --model_path FOLDER --video_path CLIP.mp4 --question "What happens?"
python -m torch.distributed.launch --nproc_per_node=2 tools/video_audio_demo.py --model_path FOLDER ...

Several processes split the input by CP, or first the model by TP if it is too large for one device. --layout sets
another layout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from longvita import cli

MODEL_TYPES = ["qwen2p5_instruct"]


def parse_arguments() -> argparse.Namespace:
    """Parse the options of the published demo, and --layout, --tokenizer and --max_new_tokens of this project."""
    parser = argparse.ArgumentParser(description="Ask Long-VITA about a picture or a video.")
    parser.add_argument("--model_path", required=True, help="Long-VITA folder, Hub id or training checkpoint")
    parser.add_argument("--image_path", nargs="+", action="extend", default=[], help="picture files")
    parser.add_argument("--video_path", nargs="+", action="extend", default=[], help="video files or folders of frames")
    parser.add_argument("--model_type", choices=MODEL_TYPES, default=MODEL_TYPES[0], help="language model")
    parser.add_argument("--conv_mode", choices=MODEL_TYPES, default=MODEL_TYPES[0], help="chat template")
    parser.add_argument("--question", required=True, help="text, or a .txt file with it")
    parser.add_argument("--max_seq_len", "--max-seq-len", type=int, help="maximum tokens of prompt and answer")
    parser.add_argument("--max_num_frame", "--max-num-frames", type=int, help="maximum frames sampled from a video")
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, help="maximum tokens of the answer")
    parser.add_argument("--layout", help="tp=2,pp=2,sp=true")
    parser.add_argument("--tokenizer", help="tokenizer folder, if the model's folder has none")
    # torch.distributed.launch passes this option; the launcher reads the environment instead.
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Answer the question on standard output, as `longvita generate` does."""
    arguments = parse_arguments()
    options = {
        "--question": [arguments.question],
        "--image": arguments.image_path,
        "--video": arguments.video_path,
        "--layout": [arguments.layout],
        "--tokenizer": [arguments.tokenizer],
        "--max-seq-len": [arguments.max_seq_len],
        "--max-num-frames": [arguments.max_num_frame],
        "--max-new-tokens": [arguments.max_new_tokens],
    }
    given = [f"{name}={value}" for name, values in options.items() for value in values if value is not None]
    cli.main(["generate", *given, "--", arguments.model_path])


if __name__ == "__main__":
    main()
