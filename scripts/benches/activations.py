"""What codecs of activations and their gradients cost in loss: a pipeline of four stages in one process.

What passes from part to part is packed and unpacked as on the wire, all five times in either direction; nothing else
differs, and equal seeds draw equal weights and equal data.

    scripts/bench activations

takes ten minutes on one core and adds its part to docs/benchmarks/pipeline.json and .md.
"""

import statistics

import torch
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import pack, unpack
from decentral.pipeline.routing import stage_order
from decentral.ports.trainer import Seat
from decentral.workers.lm import blocks as make_blocks
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.report import Record, stamp
from scripts.benches.lib.stages import Stages
from scripts.benches.pipeline_page import keep

SCRIPT = "activations"
STAGES = 4
CODECS = ("fp32", "bf16", "int8-b128")
#: 0.8 million parameters, as the task has by default.
SETTINGS = {"batch_sequences": 8, "val_batches": 8}


def measure(seed: int, steps: int, microbatches: int, codec_name: str, *, swap: bool) -> float:
    """Loss on the held-out text after a run, in nats a token, through the codec too.

    Args:
        seed: of weights and data.
        steps: of the run, for the learning rate as well.
        microbatches: of a batch.
        codec_name: of what passes between the parts.
        swap: whether every second micro-batch takes the first two and the last two stages the other way round.
    """
    codec = make_codec(codec_name)

    def sent(values: Tensor) -> Tensor:
        return unpack(pack(codec, values.reshape(-1)), codec, values.numel()).view(values.shape)

    seat = Seat(run_seed=seed, stream_seed=0, total_steps=steps, device="cpu", data=())
    orders = [stage_order(STAGES, index, swap=swap) for index in range(microbatches)]
    pipeline = Stages(make_blocks(SETTINGS, seat, microbatches), STAGES, "auto", orders, sent)
    for step in range(steps):
        pipeline.learn(step)
        for part in (pipeline.head, *pipeline.stages.values()):
            part.apply([0], microbatches, step)
    return statistics.mean(pipeline.loss(*pipeline.data.held_out(index)) for index in range(pipeline.data.num_held_out))


def main() -> None:
    """Train all."""
    parser = Parser(SCRIPT, __doc__, "pipeline")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--swap", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = {"steps": options.steps, "microbatches": options.microbatches, "swap": options.swap, **SETTINGS}
    runs: list[Record] = []
    for seed in range(options.seeds):
        for name in CODECS:
            loss = measure(seed, options.steps, options.microbatches, name, swap=options.swap)
            runs.append({"codec": name, "seed": seed, "val_loss": loss})
            print(runs[-1], flush=True)
            keep(options.out, "activations", {"asked": asked, "runs": runs, **stamp(SCRIPT)})


if __name__ == "__main__":
    enter(main)
