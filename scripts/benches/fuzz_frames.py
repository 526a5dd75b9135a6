"""Breaks frames of every codec, and messages of a gossip, in many ways: each is a FrameError or finite values.

    scripts/bench fuzz-frames [--frames 1000000] [--messages 200000] [--seed 0]

Prints how far the broken ones came. Exit code 1: one was neither refused nor read, or asked for more memory than its
answer takes; the message names its number and the seed. How frames are broken: tests/support/mutants.py, messages:
tests/support/mutant_messages.py.
"""

import time

from decentral.codecs.codec import make_codec
from scripts.benches.lib.command import BenchError, Parser, enter
from tests.support.mutant_messages import READERS, fuzz_messages
from tests.support.mutants import fuzz
from tests.unit.codecs.vectors import ALL_CODECS


def main() -> None:
    """Fuzz and print."""
    parser = Parser("fuzz-frames", __doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        tally = fuzz([make_codec(name) for name in ALL_CODECS], arguments.frames, arguments.seed)
        messages = fuzz_messages(arguments.messages, arguments.seed)
    except AssertionError as violation:
        raise BenchError(str(violation)) from None
    took_s = time.perf_counter() - began
    print(f"{'codec':16} {'frames':>9} {'decoded':>9} {'accepted':>9}")
    for name in ALL_CODECS:
        print(f"{name:16} {tally.frames[name]:9} {tally.decoded[name]:9} {tally.accepted[name]:9}")
    totals = (counts.total() for counts in (tally.frames, tally.decoded, tally.accepted))
    print(f"{'all':16}", *(f"{total:9}" for total in totals))
    print(f"\n{'message':16} {'mutants':>9} {'read':>9}")
    for kind in READERS:
        print(f"{kind:16} {messages.tried[kind]:9} {messages.read[kind]:9}")
    print("\nrefused for:")
    for rule, count in (tally.refusals + messages.refusals).most_common():
        print(f"{count:9} {rule}")
    print(f"\nno violation; {took_s:.0f} s")


if __name__ == "__main__":
    enter(main)
