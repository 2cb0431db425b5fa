"""Causal attention split over processes, compared with one process: forward and backward pass.

    python tools/benchmark/context_parallel.py --json

Each process has one thread. `speedup`: seconds of one process divided by those of two with ring attention; median of
alternating pairs. `efficiency`: seconds of the ring's kernels alone, at the same shapes on both cores at once, divided
by those of the ring. `bytes_over_minimum`: bytes sent by the busiest rank, divided by 3 (CP - 1) times the bytes of its
keys and values (sent once in the forward pass, and again with their gradients in the backward pass). `flop_imbalance`:
work of the busiest rank divided by the mean. `mixed_*`: packed sequences of the lengths in sample_lengths.py at CP 4,
with each document on as few ranks as possible, compared with all documents cut over all ranks; the imbalance is the
worst of all sequences. CP 3, CP 4 and Ulysses run too, with more processes than two cores can run at once: for these it
prints only the differences from one process and the bytes.
"""

from __future__ import annotations

import argparse

from longvita.processes import launch


def main() -> int:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--tokens", type=int, default=32768, help="tokens of the sequence")
    parser.add_argument("--pairs", type=int, default=5, help="number of measured pairs")
    arguments = parser.parse_args()
    if arguments.tokens < 64 or arguments.pairs < 1:
        parser.error("at least 64 tokens and 1 pair")
    return launch("context_parallel_process:run", vars(arguments), 4)


if __name__ == "__main__":
    raise SystemExit(main())
