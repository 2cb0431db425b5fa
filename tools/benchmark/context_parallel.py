"""Attention split over processes against attention in one: forward and backward pass, causal.

    python tools/benchmark/context_parallel.py --json

Processes of one thread. `speedup`: seconds of one process over those of two with ring attention, median of pairs that
take turns. `efficiency`: seconds of the ring's kernels alone, at the same shapes on both cores at once, over those of
the ring. `bytes_over_minimum`: bytes that the busiest rank sends over 3 (CP - 1) times the bytes of its keys and values
(once forward; keys and values again, and their gradients, backward). `flop_imbalance`: work of the busiest rank over
the mean. `mixed_*`: a packed sequence of the lengths in sample_lengths.py at CP 4, each document on the fewest ranks,
against all of them cut over all ranks; many such sequences, the worst imbalance among them.
CP 3, CP 4 and Ulysses run too, more processes than two cores can run at once: what they print is their difference from
one process and their bytes.
"""

from __future__ import annotations

import argparse

from longvita.processes import launch


def main() -> int:
    """Starts the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--tokens", type=int, default=32768, help="tokens of the sequence")
    parser.add_argument("--pairs", type=int, default=5, help="pairs that are measured")
    arguments = parser.parse_args()
    if arguments.tokens < 64 or arguments.pairs < 1:
        parser.error("at least 64 tokens and 1 pair")
    return launch("context_parallel_contest:run", vars(arguments), 4)


if __name__ == "__main__":
    raise SystemExit(main())
