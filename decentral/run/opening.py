"""The start of a swarm in somebody's own program: ``found``, ``join`` and ``resume``. The public face of the library.

All put the network on a thread of its own (``network``) and return when the model has the swarm's weights.
"""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decentral.adapters.clock import RealClock
from decentral.config import interval
from decentral.config.resolve import resolve_method
from decentral.config.settings import Settings, load
from decentral.engine.options import Parts
from decentral.engine.worker import Worker
from decentral.errors import ConfigError
from decentral.monitor.history import HistoryJournal
from decentral.monitor.journal import FanOut, StagedJournal
from decentral.ports.trainer import Model, Publisher, Spread, Stateful
from decentral.run.connect import CONNECT_S, connect
from decentral.run.connection import Connection, Start
from decentral.run.disk import Disk
from decentral.run.handover import HandOver
from decentral.run.logs import logger, quiet
from decentral.run.network import NetworkThread
from decentral.run.options import run_options
from decentral.run.resuming import take_up
from decentral.run.rows import Rows, SwarmClaims
from decentral.run.saving import estimated_bytes, last_state, open_journal, saver, warn_if_short
from decentral.run.sharing import Buffers, SharedModel, model_of
from decentral.run.swarm import Swarm
from decentral.run.tasks import Guarded
from decentral.run.watch import begun, watch
from decentral.state.checkpoints.checkpoint import About
from decentral.state.checkpoints.folder import newest


def found(
    model: nn.Module | Mapping[str, Tensor],
    *,
    method: str | None = None,
    rounds: int | None = None,
    settings: Mapping[str, Any] | None = None,
    config: Path | str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    stateful: Mapping[str, Stateful] | None = None,
    rows: Rows | None = None,
    buffers: Buffers = "local",
    validate: Callable[[], float] | None = None,
    out: Path | str = "",
    overwrite: bool = False,
) -> Swarm:
    """Found a swarm whose first weights are the model's.

    Args:
        model: a module, or named tensors; what of it is shared is logged in one line (see ``sharing``).
        method: how workers come to agree, such as ``diloco`` or ``streaming``; the default is that of ``config``.
        rounds: outer rounds of the run.
        settings: further ones by dotted key, as in the configuration: ``{"method.inner_steps": 50}``. Those of this
            machine alone begin with ``worker.``: ``{"worker.port": 31337}``.
        config: a TOML file; ``settings`` go before it.
        optimizer: the inner one: checked to train what is shared, and kept in checkpoints.
        stateful: whatever else has ``state_dict`` and ``load_state_dict`` and is to go on after a resume, by any name:
            a schedule, a loader of data, a ``GradScaler``.
        rows: shares the rows of a data set out among the workers; kept in checkpoints.
        buffers: whether float buffers are averaged or stay each worker's own.
        validate: mean loss of the model as it is, on held-out data; called with the swarm's weights in place.
        out: folder for identity, journal and weights; empty to keep nothing on disk.
        overwrite: whether the weights and checkpoints of another run in ``out`` may be replaced; else it is refused.

    Returns:
        The swarm, which must be left (``Swarm.leave``, or a ``with`` block).

    Raises:
        UsageError: there is a run in ``out``.
        DecentralError: a setting that is wrong, a port that is taken, a model with nothing to share.
    """

    def start() -> Start:
        read = _read(config, method, rounds, settings, out)
        swarm = resolve_method(read.swarm)
        task = swarm.task.model_copy(update={"factory": "", "settings": {}})
        return Start(swarm.model_copy(update={"task": task}), read.worker, overwrite=overwrite)

    return _open(start, lambda: model_of(model, buffers, validate, optimizer, _with(rows, stateful)), optimizer, rows)


def join(
    address: str,
    model: nn.Module | Mapping[str, Tensor],
    *,
    settings: Mapping[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    stateful: Mapping[str, Stateful] | None = None,
    rows: Rows | None = None,
    buffers: Buffers = "local",
    validate: Callable[[], float] | None = None,
    out: Path | str = "",
    overwrite: bool = False,
) -> Swarm:
    """Join the swarm of any of its workers and load its weights into the model.

    Args:
        address: ``host:port`` or multiaddr of a worker that runs; commas between several, which are tried in order.
        model: of the same shared names and shapes as the founder's.
        settings: of this machine (``worker.``), as for ``found``; others must be as the swarm has them.
        optimizer: see ``found``.
        stateful: see ``found``.
        rows: see ``found``.
        buffers: see ``found``.
        validate: see ``found``.
        out: see ``found``; with that of this run the worker comes back under its identity.
        overwrite: see ``found``.

    Raises:
        UnreachableError: nobody answers, or nobody hands over the weights.
        MismatchError: the model or a setting is not the swarm's.
        DecentralError: as for ``found``.
    """

    def start() -> Start:
        addresses = [part.strip() for part in address.split(",")]
        read = _read(None, None, None, settings, out)
        return Start(None, read.worker, addresses, read.explicit, overwrite)

    return _open(start, lambda: model_of(model, buffers, validate, optimizer, _with(rows, stateful)), optimizer, rows)


def resume(
    folder: Path | str,
    model: nn.Module | Mapping[str, Tensor],
    *,
    join: str = "",
    settings: Mapping[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    stateful: Mapping[str, Stateful] | None = None,
    rows: Rows | None = None,
    buffers: Buffers = "local",
    validate: Callable[[], float] | None = None,
) -> Swarm:
    """Go on with the run in the folder of a worker that was stopped, with its weights, its optimizer and its identity.

    If others of the run live it is joined again, else it is brought back from the folder.

    Args:
        folder: that was ``out`` of ``found`` or ``join``.
        model: of the same shared names and shapes as then.
        join: addresses to ask beside those that the folder knows, with commas between several.
        settings: of this machine (``worker.``), as for ``found``. Others take effect only if nobody else lives: the
            run then goes on with them, and the log says what starts anew.
        optimizer: see ``found``; without it the inner optimizer starts anew.
        stateful: see ``found``.
        rows: see ``found``.
        buffers: see ``found``.
        validate: see ``found``.

    Raises:
        ConfigError: there is no run in the folder, or no whole checkpoint of it.
        UsageError: the run is over.
        DecentralError: as for ``found``.
    """

    def start() -> Start:
        addresses = [part.strip() for part in join.split(",") if part.strip()]
        return take_up(Path(folder), addresses, lambda swarm, _: resolve_method(swarm), flags=settings)

    return _open(start, lambda: model_of(model, buffers, validate, optimizer, _with(rows, stateful)), optimizer, rows)


def _read(
    config: Path | str | None,
    method: str | None,
    rounds: int | None,
    settings: Mapping[str, Any] | None,
    out: Path | str,
) -> Settings:
    """Everything that was stated, checked."""
    stated = {"method.name": method, "run.rounds": rounds, "worker.out": str(out) or None, **(settings or {})}
    return load(Path(config) if config is not None else None, (), stated)


def _with(rows: Rows | None, stateful: Mapping[str, Stateful] | None) -> dict[str, Stateful]:
    """What has a state."""
    return {**(stateful or {}), **({} if rows is None else {"rows": rows})}


def _open(
    start: Callable[[], Start],
    model: Callable[[], SharedModel],
    optimizer: torch.optim.Optimizer | None,
    rows: Rows | None,
) -> Swarm:
    """This process's place in the swarm; one with all others of its process group, if it is in one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return _open_alone(start(), model(), claims=None if rows is None else rows.claims)
    # They load all of torch's distributed tensors, which one process does without.
    from decentral.run.joint import JointSwarm
    from decentral.run.ranks import Ranks
    from decentral.run.spread import SpreadModel

    ranks, made = Ranks.form(), list[SharedModel]()
    ranks.all_do(lambda: made.append(model()))
    if rows is not None:
        rows.deal_to(ranks)
    numbered = [each for group in optimizer.param_groups for each in group["params"]] if optimizer is not None else []
    spread = SpreadModel(Guarded(made[0]), ranks, numbered)

    def open_(model: Model, idle: Callable[[], None]) -> Swarm:
        logger.info("%s", made[0].text)
        return _open_alone(start(), model, idle, None if rows is None else rows.claims)

    return JointSwarm(ranks, spread, open_ if ranks.leads else None)


def _open_alone(
    start: Start, model: Model, idle: Callable[[], None] = lambda: None, claims: SwarmClaims | None = None
) -> Swarm:
    if start.own.out:
        Path(start.own.out).mkdir(parents=True, exist_ok=True)
    network = NetworkThread()
    try:
        connection = network.call(connect(start), timeout_s=CONNECT_S)
        if connection.swarm.pipeline.stages:
            network.call(connection.node.close(), timeout_s=CONNECT_S)
            raise ConfigError(
                f"{connection.run_id} trains a model in stages, which a training loop of its own cannot take part in.",
                hint="Join it with `decentral worker --join ADDR`.",
            )
        if isinstance(model, SharedModel):
            logger.info("%s", model.text)
        return take_part(connection, network, model, quiet(), idle=idle, claims=claims)
    except BaseException:
        network.close()
        raise


def take_part(
    connection: Connection,
    network: NetworkThread,
    model: Model,
    told: StagedJournal,
    publish: Publisher | None = None,
    idle: Callable[[], None] = lambda: None,
    claims: SwarmClaims | None = None,
) -> Swarm:
    """Make this a worker of the run with a model, and bring the swarm's weights into it.

    Args:
        connection: of the run; closed when the swarm is left.
        network: its thread; closed likewise.
        model: called on this thread alone.
        told: a journal for people.
        publish: see ``saver``.
        idle: called now and then while the loop waits.
        claims: by which the model's data is shared out, if it is.

    Raises:
        DecentralError: the model does not fit the run, or nobody hands over the weights; everything is closed.
    """
    resources = AsyncExitStack()
    resources.push_async_callback(connection.node.close)
    clock = RealClock()
    resources.callback(clock.close)
    hand = HandOver(clock, idle)
    if connection.own.out and not isinstance(model, Stateful):
        logger.warning("what is trained has no state_dict: its inner optimizer starts anew after a resume")
    try:
        history = begun(connection)
        told = FanOut(told, HistoryJournal(history, clock.wall, connection.node.identity.peer_id))
        disk, journal = Disk(), open_journal(connection, clock, told, resources)
        guarded = model if isinstance(model, Spread) else Guarded(model)
        worker = _worker(connection, hand, guarded, journal, disk, publish)
        if claims is not None:
            claims.bind(network, worker.rows, connection.swarm.run.seed)
        network.call(watch(connection, worker.membership, history, resources), timeout_s=CONNECT_S)
        swarm = Swarm(connection, network, hand, worker, model, disk, resources)
        hand.wait_for(network.submit(swarm.begin()))
    except BaseException:
        network.call(resources.aclose(), timeout_s=CONNECT_S)
        raise
    return swarm


def _worker(
    connection: Connection,
    hand: HandOver,
    model: Model,
    journal: StagedJournal,
    disk: Disk,
    publish: Publisher | None,
) -> Worker:
    """The engine on this connection, whose steps and work with the model are the loop's."""
    node, own, run_id = connection.node, connection.own, connection.run_id
    if node.directory is None:
        raise AssertionError("a worker's node keeps records")
    options = run_options(connection.swarm, run_id, model.parameters())
    save = restored = None
    if own.out:
        out = Path(own.out)
        about = About(run_id, connection.swarm.method.name, options.rounds)
        save = saver(out, about, own.keep, hand.wall, disk, publish)
        if connection.is_back:
            restored = newest(out, run_id)[1]
        elif connection.peers:
            restored = last_state(out, run_id)
        num_values = sum(value.numel() for value in model.parameters().values())
        warn_if_short(out, estimated_bytes(num_values, options.rule.num_buffers, own.keep) + own.journal_bytes)
    parts = Parts(
        transport=node.transport,
        directory=node.directory,
        clock=hand,
        identity=node.identity,
        model=model,
        inner=hand,
        journal=journal,
        restored=restored,
        save=save,
        save_every=interval.parse(own.checkpoint_every),
        note=disk.note,
        protect=own.protect,
        guard_bytes=own.guard_bytes,
        device=own.device,
    )
    return Worker(options, parts)
