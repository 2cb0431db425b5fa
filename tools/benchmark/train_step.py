"""Training steps compared with transformers' InternVL and torch's DDP: same model, same weights, same samples.

    python tools/benchmark/train_step.py --json

Two processes of one thread. Each step is forward, backward and optimizer over documents of 100 to 2,000 tokens: text,
one picture, several pictures, videos. `packed_over_transformers`: tokens of real content per second of our packed step
divided by theirs, whose collator pads documents in the given order. `padded_over_transformers`: both with the same
padded batch. Their micro batch is the fastest of several sizes, which is determined first; their speed with single
documents, without padding, is printed too. The steps alternate; the ratios are medians over the rounds. Every step
starts from the same weights; `loss_difference` is the largest difference of the losses in a round.
"""

from __future__ import annotations

import argparse
import tempfile

from longvita.processes import launch


def main() -> int:
    """Start the two processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=5, help="number of measured rounds")
    parser.add_argument("--documents", type=int, default=4, help="documents per process and step")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.documents < 2:
        parser.error("at least 1 round and 2 documents: a collator does not pad a single document")
    with tempfile.TemporaryDirectory() as folder:
        return launch("train_step_process:run", {**vars(arguments), "folder": folder}, 2)


if __name__ == "__main__":
    raise SystemExit(main())
