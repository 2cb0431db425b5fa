"""A million tokens through the real path: a video file, prefill over two context-parallel processes, eight new tokens.

    python tools/benchmark/million_tokens.py --json
    python tools/benchmark/million_tokens.py --tokens 65536 --json

A language model of one layer, one head and one group, a video of the most frames that fit, processes of one thread.
The weights are set by hand so that attention must find five coloured frames among the grey ones (see
retrieval_weights.py). `needle_found`: 1 when each of the eight greedy tokens is right, which takes one retrieval
each; the frames stand at depths 0, 0.25, 0.5, 0.75 and 1. `efficiency`: FLOP/s of attention in the prefill, exchange
and merging included, over those of the plain kernel with both cores busy. `peak_rss_slope`: what the peak of resident
memory grows by for each token from an eighth of the length (32,768 tokens at least, but not above a half) to all of it,
over the bytes of a token's keys and values; sums over the ranks. `encoding_peak_ratio`: the most memory that decoding
and encoding a chunk of frames takes beyond what lay there before, at all of the length over at the shorter one.
"""

from __future__ import annotations

import argparse
import tempfile

from longvita.processes import launch


def main() -> int:
    """Starts the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--tokens", type=int, default=2**20, help="longest prompt and answer")
    arguments = parser.parse_args()
    if arguments.tokens < 16384:
        parser.error("at least 16384 tokens")
    with tempfile.TemporaryDirectory() as folder:
        return launch("million_tokens_contest:run", vars(arguments) | {"folder": folder}, 2)


if __name__ == "__main__":
    raise SystemExit(main())
