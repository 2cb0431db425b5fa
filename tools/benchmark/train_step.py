"""Training steps against transformers' InternVL under torch's DDP: same model, same weights, same samples.

    python tools/benchmark/train_step.py --json

Two processes of one thread. Each step is forward, backward and optimizer over documents of 100 to 2,000 tokens: text,
one picture, several pictures, videos. `packed_over_transformers` is tokens of real content a second of our packed step
over theirs, whose collator pads documents in the order they come; `padded_over_transformers` gives both the same padded
batch. Their micro batch is the fastest of several sizes, found first; their documents one by one, without padding, are
printed beside them. The steps take turns; the ratios are medians over the rounds. Every step starts from the same
weights, so `loss_difference` is that of the losses of a round.
"""

from __future__ import annotations

import argparse
import tempfile

from longvita.processes import launch


def main() -> int:
    """Starts the two processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are measured")
    parser.add_argument("--documents", type=int, default=4, help="documents a process and step")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.documents < 2:
        parser.error("at least 1 round and 2 documents: a collator pads nothing in one document")
    with tempfile.TemporaryDirectory() as folder:
        return launch("train_step_contest:run", {**vars(arguments), "folder": folder}, 2)


if __name__ == "__main__":
    raise SystemExit(main())
