"""A plain torch loop in a swarm: python plain_torch.py found | join ADDRESS."""

import sys

import torch

import decentral

model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
command, *address = sys.argv[1:]
make = (
    (lambda: decentral.join(address[0], model)) if command == "join" else (lambda: decentral.found(model, rounds=200))
)
with make() as swarm:
    print("others join with:", swarm.address, flush=True)
    data = torch.Generator().manual_seed(swarm.seed)  # its own on every worker
    while not swarm.done:
        x = torch.randn(64, 8, generator=data)
        loss = (model(x) - x.sum(1, keepdim=True).sin()).square().mean()
        loss.backward(), optimizer.step(), optimizer.zero_grad()
        swarm.step(loss=loss, tokens=64)
    print(f"{swarm.state} after {swarm.global_step} steps, loss {loss.item():.3f}")
