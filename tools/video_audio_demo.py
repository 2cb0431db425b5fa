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

from longvita.commands.generate import generate
from longvita.inference.settings import Options

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
    parser.add_argument("--max_seq_len", type=int, help="maximum tokens of prompt and answer")
    parser.add_argument("--max_num_frame", type=int, help="maximum frames sampled from a video")
    parser.add_argument("--max_new_tokens", type=int, help="maximum tokens of the answer")
    parser.add_argument("--layout", help="tp=2,pp=2,sp=true")
    parser.add_argument("--tokenizer", help="tokenizer folder, if the model's folder has none")
    # torch.distributed.launch passes this option; the launcher reads the environment instead.
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Print the answer on standard output and return the exit code."""
    arguments = parse_arguments()
    options = Options(
        layout=arguments.layout,
        tokenizer=arguments.tokenizer,
        max_seq_len=arguments.max_seq_len,
        max_num_frames=arguments.max_num_frame,
        max_new_tokens=arguments.max_new_tokens,
    )
    return generate(arguments.model_path, arguments.question, arguments.image_path, arguments.video_path, options)


if __name__ == "__main__":
    sys.exit(main())
