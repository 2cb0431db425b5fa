"""Decoding after a long context: with the KV cache or by recomputation, on two processes or one.

    python tools/benchmark/decode.py --json

The language model has one layer with 32 heads of 128, each with its own keys and values, and few other weights: as in a
large model after a million tokens, context parallelism divides nearly all work of a new token. A video fills the
context; each process has one thread.
`speedup`: seconds of recomputing the full context divided by those of one new token, CP 2.
`merge_overhead`: seconds of a new token at CP 2 divided by half of those in one process; median of alternating tokens.
`prefix_reuse_cost`: seconds to the first token of a second question about a copy of the same video, divided by those of
the first question.
"""

from __future__ import annotations

import argparse
import tempfile

from longvita.processes import launch


def main() -> int:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--tokens", type=int, default=32768, help="tokens of context")
    parser.add_argument("--new-tokens", type=int, default=24, help="tokens of the measured answer")
    arguments = parser.parse_args()
    if arguments.tokens < 1024 or arguments.new_tokens < 2:
        parser.error("at least 1024 tokens of context and 2 new tokens")
    with tempfile.TemporaryDirectory() as folder:
        return launch("decode_process:run", vars(arguments) | {"folder": folder}, 2)


if __name__ == "__main__":
    raise SystemExit(main())
