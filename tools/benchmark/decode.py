"""New tokens after a long context: with the cache against recomputation, on two processes against one.

    python tools/benchmark/decode.py --json

A language model of one layer with 32 heads of 128, each with keys and values of its own, and few weights beside them:
nearly all of a new token's work is what context parallelism shares out, as it is after a million tokens in a large
model. A video fills the context; processes have one thread each.
`speedup`: seconds of the whole context once more over those of one new token, CP 2.
`merge_overhead`: seconds of a new token at CP 2 over half of those in one process, tokens taking turns, median.
`prefix_reuse_cost`: seconds until the first token of the answer to a second question about a copy of the same video,
over those of the first question.
"""

from __future__ import annotations

import argparse
import tempfile

from longvita.processes import launch


def main() -> int:
    """Starts the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--tokens", type=int, default=32768, help="tokens of context")
    parser.add_argument("--new-tokens", type=int, default=24, help="tokens of the answer that is measured")
    arguments = parser.parse_args()
    if arguments.tokens < 1024 or arguments.new_tokens < 2:
        parser.error("at least 1024 tokens of context and 2 new tokens")
    with tempfile.TemporaryDirectory() as folder:
        return launch("decode_contest:run", vars(arguments) | {"folder": folder}, 2)


if __name__ == "__main__":
    raise SystemExit(main())
