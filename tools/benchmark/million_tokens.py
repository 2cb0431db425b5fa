"""Generation from a million tokens: a video file, prefill on two context-parallel processes, eight new tokens.

    python tools/benchmark/million_tokens.py --json
    python tools/benchmark/million_tokens.py --tokens 65536 --json

The language model has one layer, one head and one group; the video has as many frames as fit; each process has one
thread. The weights are set by hand so that attention must find five coloured frames among grey ones (see
retrieval_weights.py). `needle_found`: 1 if all eight greedy tokens are right, each of which takes one retrieval; the
frames are at depths 0, 0.25, 0.5, 0.75 and 1. `efficiency`: FLOP/s of attention in the prefill, with communication and
merging, divided by those of the kernel alone with both cores busy. `peak_rss_slope`: growth of the peak resident memory
per token from an eighth of the length (at least 32,768 tokens, but at most a half) to the full length, divided by the
bytes of a token's keys and values; summed over the ranks. `encoding_peak_ratio`: peak memory of decoding and encoding a
chunk of frames, in addition to the memory before, at the full length divided by that at the shorter one.
"""

from __future__ import annotations

import argparse
import tempfile

from longvita.processes import launch


def main() -> int:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--tokens", type=int, default=2**20, help="maximum tokens of prompt and answer")
    arguments = parser.parse_args()
    if arguments.tokens < 16384:
        parser.error("at least 16384 tokens")
    with tempfile.TemporaryDirectory() as folder:
        return launch("million_tokens_process:run", vars(arguments) | {"folder": folder}, 2)


if __name__ == "__main__":
    raise SystemExit(main())
