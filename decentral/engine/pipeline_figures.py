"""The figures of the stages that a process holds, put together for ``status``. Pure."""

from collections.abc import Mapping

from msgspec.structs import replace

from decentral import __version__
from decentral.engine.stage_worker import StageWorker
from decentral.pipeline.head import HeadLoop
from decentral.pipeline.stage import StageLoop
from decentral.swarm.presence import Metrics


def figures_of(held: Mapping[int, StageWorker], device: str) -> Metrics:
    """The figures of stages together; of a head its own come first.

    Args:
        held: by stage.
        device: where they compute.
    """
    stage_workers = [held[stage] for stage in sorted(held)]
    figures = stage_workers[0].worker.report.metrics() if stage_workers else Metrics(version=__version__, device=device)
    others = [stage_worker.worker.report.metrics() for stage_worker in stage_workers[1:]]
    loops = [stage_worker.loop for stage_worker in stage_workers]
    stages = [loop for loop in loops if isinstance(loop, StageLoop)]
    figures = replace(
        figures,
        compute_s=figures.compute_s + sum(other.compute_s for other in others),
        queue=sum(loop.queue for loop in stages),
        microbatch_s=sum(loop.microbatch_s for loop in stages),
    )
    for head in (loop for loop in loops if isinstance(loop, HeadLoop)):
        val_round, val_loss = head.validated
        failures = ",".join(f"{stage}:{count}" for stage, count in sorted(head.failures.items()))
        figures = replace(figures, val_round=val_round, val_loss=val_loss, resent=head.resent, failures=failures[:200])
    return figures
