"""A worker of the peers' bench: ours or a peer's library beside the training loop (``peers_loop``).

Run by ``peers`` in a process for each worker. Model, streams of data, inner optimizer, its schedule and the loop are
the same everywhere; when others are asked, and for what, is the system's. A library that is not installed fails here,
in its own process. Knows nothing of tables.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import decentral
from decentral.monitor.journal import JournalReader
from decentral.ports.trainer import StepReport
from scripts.benches.lib.costs import memory_bytes, processor_s, sent_bytes
from scripts.benches.peers_loop import WAIT_S, Local, Loop, Place, Values

#: Outer step of every system that has one: that of the DiLoCo paper.
OUTER: Mapping[str, Any] = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
_PORT = 29500
#: Of torchft's streaming, and ours beside it.
_DELAY = 5


# Ours.


def ours(loop: Loop, place: Place, trainer: Any, settings: Mapping[str, Any]) -> None:
    """``decentral.found`` and ``join``, with ``step`` called after each step of the loop."""
    own = {"worker.host": place.address, "worker.threads": 1, "worker.checkpoint_every": "0"}
    out = str(place.folder / f"own{place.rank}") if place.values else ""
    if place.rank == 0:
        shared = {
            "run.min_workers": place.members,
            "run.seed": place.seed,
            "method.inner_steps": place.inner_steps,
            "eval_every_rounds": 1_000_000,
            **settings,
        }
        swarm = decentral.found(trainer.parameters(), rounds=place.rounds, settings={**own, **shared}, out=out)
        place.tell("address", swarm.address)
    else:
        swarm = decentral.join(place.told("address"), trainer.parameters(), settings=own, out=out)
    with swarm:
        loop.run(lambda report: swarm.step(loss=report.loss, tokens=report.tokens))
    if out:
        events = JournalReader(Path(out, "journal.jsonl")).read()
        loop.record["exchanges_s"] = [event["transfer_s"] for event in events if event["event"] == "round_mixed"]


# Over gloo.


@contextmanager
def gloo(place: Place) -> Iterator[None]:
    """A process group of all workers."""
    master = f"tcp://{place.hosts[0]}:{_PORT}"
    dist.init_process_group("gloo", master, rank=place.rank, world_size=place.members)
    try:
        yield
    finally:
        dist.destroy_process_group()


def data_parallel(loop: Loop, place: Place, trainer: Local) -> None:
    """DistributedDataParallel of torch: gradients are averaged at every step."""
    with gloo(place):
        trainer.through(nn.parallel.DistributedDataParallel(trainer.module))
        loop.run()


def plain_diloco(loop: Loop, place: Place, trainer: Local) -> None:
    """The least that DiLoCo takes: one flat all-reduce in float32 every round, and torch's SGD."""
    parameters = list(trainer.module.parameters())
    anchor = nn.Parameter(nn.utils.parameters_to_vector(parameters).detach().clone())
    outer = torch.optim.SGD([anchor], **OUTER)

    @torch.no_grad()
    def after(report: StepReport) -> None:
        if loop.step % place.inner_steps == 0:
            anchor.grad = anchor - nn.utils.parameters_to_vector(parameters)
            dist.all_reduce(anchor.grad)
            anchor.grad /= place.members
            outer.step()
            nn.utils.vector_to_parameters(anchor.clone(), parameters)  # which become views of it

    with gloo(place):
        loop.run(after)


def accelerate_local_sgd(loop: Loop, place: Place, trainer: Local) -> None:
    """LocalSGD of accelerate: parameters are averaged one by one every round."""
    from accelerate import Accelerator
    from accelerate.local_sgd import LocalSGD

    where = {"RANK": place.rank, "LOCAL_RANK": 0, "WORLD_SIZE": place.members, "LOCAL_WORLD_SIZE": 1}
    where |= {"MASTER_PORT": _PORT, "ACCELERATE_USE_CPU": 1}
    os.environ.update({key: str(value) for key, value in where.items()}, MASTER_ADDR=place.hosts[0])
    accelerator = Accelerator(cpu=True)
    module = accelerator.prepare_model(trainer.module)
    trainer.through(module)
    averaging = LocalSGD(accelerator, module, place.inner_steps)
    with averaging:
        loop.run(lambda report: averaging.step())
    accelerator.end_training()


# torchft.


class Bell(torch.optim.Optimizer):
    """Rung after each step: torchft hooks itself to an optimizer's step, and this one has nothing else to do.

    So what torchft does is timed apart from the step.
    """

    def __init__(self) -> None:
        super().__init__([nn.Parameter(torch.zeros(1))], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """The hooks are called around it."""


def torchft(loop: Loop, place: Place, trainer: Local, fragments: int = 1, **settings: Any) -> None:
    """DiLoCo of torchft; the first worker's process has its lighthouse."""
    from torchft.coordination import LighthouseServer
    from torchft.local_sgd import DiLoCo
    from torchft.manager import Manager
    from torchft.process_group import ProcessGroupGloo

    if place.rank == 0:
        lighthouse = LighthouseServer(bind=f"{place.address}:{_PORT}", min_replicas=place.members)
    limit = timedelta(seconds=WAIT_S)
    store = dist.TCPStore(place.address, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    manager = Manager(
        pg=ProcessGroupGloo(timeout=limit),
        load_state_dict=lambda state: None,
        state_dict=dict,
        min_replica_size=place.members,
        use_async_quorum=False,
        timeout=limit,
        quorum_timeout=limit,
        rank=0,
        world_size=1,
        store_addr=place.address,
        store_port=store.port,
        lighthouse_addr=f"http://{place.hosts[0]}:{_PORT}",
        replica_id=str(place.rank),
        hostname=place.address,
        init_sync=False,  # all have the same first weights
    )
    parts = [nn.ParameterList(list(trainer.module.parameters())[number::fragments]) for number in range(fragments)]
    outer = [torch.optim.SGD(part.parameters(), **OUTER) for part in parts]
    bell = Bell()
    try:
        with DiLoCo(manager, list(parts), bell, outer, place.inner_steps, **settings):
            loop.run(lambda report: bell.step())
    finally:
        manager.shutdown(wait=False)
        if place.rank == 0:
            lighthouse.shutdown()


# hivemind.


def _dht(place: Place) -> Any:
    """The DHT of hivemind, of all workers."""
    import hivemind

    peers = [place.told("address")] if place.rank else []
    dht = hivemind.DHT(initial_peers=peers, host_maddrs=[f"/ip4/{place.address}/tcp/0"], start=True)
    if place.rank == 0:
        place.tell("address", str(dht.get_visible_maddrs()[0]))
    return dht


class Stepped:
    """The optimizer of hivemind in the trainer, with the time that it takes beside the inner optimizer's step."""

    def __init__(self, optimizer: Any, inner: torch.optim.Optimizer, loop: Loop) -> None:
        self.param_groups = inner.param_groups
        """For the trainer, which writes the learning rate to them; hivemind's own are a copy."""
        self._optimizer = optimizer
        self._loop = loop
        self._stepping_s = 0.0
        inner.register_step_pre_hook(lambda *_: self._count(-time.monotonic()))
        inner.register_step_post_hook(lambda *_: self._count(time.monotonic()))

    def _count(self, seconds: float) -> None:
        self._stepping_s += seconds

    def step(self) -> None:
        """The inner optimizer's, and at the end of an epoch the averaging."""
        self._stepping_s, began = 0.0, time.monotonic()
        self._optimizer.step()
        self._loop.waited(time.monotonic() - began - self._stepping_s)


def hivemind_local(loop: Loop, place: Place, trainer: Local, *, delayed: bool) -> None:
    """hivemind.Optimizer with local updates: a round is its epoch, as many samples of all workers or some more."""
    import hivemind

    dht, inner = _dht(place), trainer.optimizer
    optimizer = hivemind.Optimizer(
        dht=dht,
        run_id="peers",
        target_batch_size=place.members * place.inner_steps * trainer.batch,
        batch_size_per_step=trainer.batch,
        optimizer=inner,
        use_local_updates=True,
        delay_state_averaging=delayed,
        matchmaking_time=2.0,
        averaging_timeout=30.0,
        averager_opts={"target_group_size": place.members, "min_group_size": place.members, "request_timeout": 1.0},
        tracker_opts={"min_refresh_period": 0.1, "default_refresh_period": 0.3, "max_refresh_period": 0.5},
    )
    trainer.optimizer = Stepped(optimizer, inner, loop)
    loop.rounds = lambda: int(optimizer.local_epoch)
    try:
        loop.run()
    finally:
        optimizer.shutdown()
        dht.shutdown()


def hivemind_averager(loop: Loop, place: Place, trainer: Values) -> None:
    """DecentralizedAverager of hivemind on values in half precision."""
    import hivemind
    from hivemind.compression import Float16Compression

    dht = _dht(place)
    averager = hivemind.averaging.DecentralizedAverager(
        [trainer.values],
        dht,
        prefix="peers",
        target_group_size=place.members,
        min_group_size=place.members,
        min_matchmaking_time=2.0,
        request_timeout=1.0,
        compression=Float16Compression(),
        start=True,
    )

    def after(report: StepReport) -> None:
        with averager.get_tensors() as averaged:
            averaged[0].copy_(trainer.values)
        averager.step(timeout=WAIT_S)
        with averager.get_tensors() as averaged:
            trainer.values.copy_(averaged[0])

    try:
        loop.run(after)
    finally:
        averager.shutdown()
        dht.shutdown()


# Flower.


def flower(loop: Loop, place: Place, trainer: Local) -> None:
    """A client of Flower: a round is what its server asks for; the last one takes no steps."""
    from flwr.client import NumPyClient, start_client

    names = list(trainer.parameters())

    class Client(NumPyClient):  # type: ignore[misc, unused-ignore]
        returned_s = 0.0

        def get_parameters(self, config: Any) -> Any:
            return [value.numpy().copy() for value in trainer.parameters().values()]

        def fit(self, parameters: Any, config: Any) -> Any:
            trainer.load({name: torch.from_numpy(value) for name, value in zip(names, parameters, strict=True)})
            if self.returned_s:
                loop.waited(time.monotonic() - self.returned_s)
                loop.keep()
            else:
                loop.begin()
            if loop.rounds() == place.rounds:
                loop.end()
                return self.get_parameters(config), 1, {}
            tokens = loop.take(place.inner_steps).tokens
            self.returned_s = time.monotonic()
            return self.get_parameters(config), tokens, {}

    address = f"{place.hosts[-1]}:{_PORT}"
    _until_open(place.hosts[-1])  # A client that comes before its server gives up at once.
    start_client(server_address=address, client=Client().to_client(), insecure=True, max_wait_time=WAIT_S)


def _until_open(host: str) -> None:
    """Return when a server listens."""
    until = time.monotonic() + WAIT_S
    while True:
        try:
            return socket.create_connection((host, _PORT), timeout=1.0).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def flower_server(place: Place, adam: bool) -> dict[str, Any]:
    """Flower's server, on a host of its own; what it costs from its first round on."""
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerConfig, start_server
    from flwr.server.strategy import FedAdam, FedAvg

    initial = ndarrays_to_parameters([value.numpy() for value in Local(place).parameters().values()])
    began: list[tuple[float, int]] = []

    def asked(round_: int) -> dict[str, Any]:
        if round_ == 1:
            began.append((processor_s(os.getpid()), sent_bytes(place.interface)))
        return {}

    common = {
        "min_fit_clients": place.members,
        "min_available_clients": place.members,
        "fraction_evaluate": 0.0,
        "min_evaluate_clients": 0,
        "initial_parameters": initial,
        "on_fit_config_fn": asked,
    }
    # Of its defaults, a server's rate of 0.1 a value and round is far too large for a language model.
    strategy = FedAdam(**common, eta=1e-2, beta_1=0.9, beta_2=0.99, tau=1e-3) if adam else FedAvg(**common)
    address = f"{place.address}:{_PORT}"
    start_server(server_address=address, config=ServerConfig(num_rounds=place.rounds + 1), strategy=strategy)
    processor, sent = began[0]
    return {
        "processor_s": processor_s(os.getpid()) - processor,
        "sent_bytes": sent_bytes(place.interface) - sent,
        "memory_bytes": memory_bytes(os.getpid()),
    }


@dataclass(frozen=True)
class System:
    """Something that trains."""

    run: Callable[..., None]
    note: str
    """What it does at a sync, in a few words."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    server: Callable[[Place], dict[str, Any]] | None = None
    """What runs on a host of its own."""


def _ours(note: str, **method: Any) -> System:
    return System(ours, note, {"settings": {f"method.{key}": value for key, value in method.items()}})


#: What ours is compared with in a ratio.
PLAIN = "plain DiLoCo loop on gloo"
_DILOCO = {"outer_lr": OUTER["lr"], "outer_momentum": OUTER["momentum"], "name": "diloco"}
_STREAMING = {"name": "streaming", "fragments": 2, "delay_steps": _DELAY}
_TORCHFT = {"use_bucketization": True}
SYSTEMS: dict[str, System] = {
    "gloo DDP": System(data_parallel, "gradients, every step"),
    PLAIN: System(plain_diloco, "one all-reduce, fp32"),
    "ours, diloco fp32": _ours("fp32", codec="fp32", **_DILOCO),
    "ours, diloco int8": _ours("int8", codec="int8-b128", **_DILOCO),
    "ours, diloco E3M0": _ours("four bits", codec="e3m0-b128", **_DILOCO),
    "ours, streaming fp32": _ours(f"2 fragments, {_DELAY} steps late", codec="fp32", outer_lr=0.7, **_STREAMING),
    "ours, streaming E3M0": _ours(f"2 fragments, {_DELAY} steps late, four bits", outer_lr=0.7, **_STREAMING),
    "ours, local-sgd int8": _ours("averages parameters, int8", name="local-sgd"),
    "ours, sparseloco": _ours("1.5 % of the values, two bits", name="sparseloco"),
    "torchft DiLoCo": System(torchft, "fp32, tensor by tensor"),
    "torchft DiLoCo, buckets": System(torchft, "fp32, one bucket", _TORCHFT),
    "torchft streaming, buckets": System(
        torchft,
        f"2 fragments, {_DELAY} steps late, fp32",
        {**_TORCHFT, "fragments": 2, "fragment_sync_delay": _DELAY, "fragment_update_alpha": 0.5},
    ),
    "hivemind local updates": System(hivemind_local, "averages parameters, fp32", {"delayed": False}),
    "hivemind local updates, delayed": System(hivemind_local, "the same in the background", {"delayed": True}),
    "accelerate LocalSGD": System(accelerate_local_sgd, "averages parameters one by one, fp32"),
    "Flower FedAvg": System(flower, "a server averages, fp32", server=partial(flower_server, adam=False)),
    "Flower FedAdam": System(flower, "a server takes a step of Adam, fp32", server=partial(flower_server, adam=True)),
    "ours, fp16 values": _ours("averages, fp16", name="local-sgd", codec="fp16"),
    "ours, int8 values": _ours("averages, int8", name="local-sgd"),
    "hivemind averager, fp16 values": System(hivemind_averager, "averages, fp16"),
}
#: Of these, those that average values and train nothing.
VALUES = tuple(name for name in SYSTEMS if name.endswith(" values"))


def work() -> None:
    """Be the worker that the bench asks for, or the server; the last line is what it costs."""
    given = json.loads(sys.argv[1])
    place = Place(**{**given, "folder": Path(given["folder"])})
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME=place.interface, FLWR_TELEMETRY_ENABLED="0", HF_HUB_OFFLINE="1")
    system = SYSTEMS[place.system]
    if place.rank == place.members:
        assert system.server is not None
        print(json.dumps(system.server(place)), flush=True)
    else:
        trainer = Values(place) if place.values else Local(place)
        loop = Loop(place, trainer)
        system.run(loop, place, trainer, **system.settings)
        print(json.dumps(loop.record), flush=True)
    os._exit(0)  # Threads that a library has left behind would keep the process.


if __name__ == "__main__":
    work()
