"""One member of data-parallel training over gloo: what the utilisation bench compares with.

The trainer is the worker's own, with the same settings. Before every optimizer step the gradients are averaged in
float32, in one all-reduce over all parameters. Against torch's DistributedDataParallel: every member clips its own
gradient before the mean and not the mean, and nothing is sent during the backward pass, which takes a hundredth of the
time that sending takes on the links in question.

Prints one line of JSON after each step.
"""

import argparse
import json
import os
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from decentral.config.resolve import resolve_task
from decentral.config.schema import WorkerConfig
from decentral.config.settings import load
from decentral.run.tasks import build_trainer


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--members", type=int, required=True)
    parser.add_argument("--master", required=True, metavar="HOST:PORT")
    parser.add_argument("--interface", required=True, help="network interface to talk through")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of decentral worker")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainer = build_trainer(resolve_task(load(assignments=options.set).swarm), WorkerConfig(), options.rank)
    os.environ["GLOO_SOCKET_IFNAME"] = options.interface
    dist.init_process_group("gloo", f"tcp://{options.master}", rank=options.rank, world_size=options.members)
    moving_s = 0.0

    def average(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal moving_s
        began = time.monotonic()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= options.members
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))
        moving_s += time.monotonic() - began

    register_optimizer_step_pre_hook(average)
    dist.barrier()
    began = time.monotonic()
    for step in range(options.steps):
        tokens = trainer.train_steps(step, 1).tokens
        now = time.monotonic()
        record = {"step": step + 1, "began_s": began, "ended_s": now, "moving_s": moving_s, "tokens": tokens}
        print(json.dumps(record), flush=True)
        began, moving_s = now, 0.0
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
