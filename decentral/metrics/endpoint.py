"""An OpenMetrics endpoint, for Prometheus and all that read the same: figures of this worker, and sums of its swarm.

prometheus-client serves it on threads of its own; a request reads the last report that was taken in and asks nobody, so
however many come, training is not held up.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from decentral.errors import ConfigError
from decentral.monitor import metrics
from decentral.monitor.report import Health, StatusReport
from decentral.types import PeerId

#: A report that is older says nothing of now: requests fail, so that whoever reads sees that something hangs.
_MAX_AGE_S = 30.0


class Endpoint:
    """See the module; ``close`` it.

    Args:
        host: to listen on.
        port: to listen on; 0 for any free one.
        own: this worker.
        clock: monotonic seconds.

    Raises:
        ConfigError: it cannot listen there.
    """

    def __init__(self, host: str, port: int, own: PeerId, clock: Callable[[], float] = time.monotonic) -> None:
        self._own = own
        self._clock = clock
        self._last: tuple[float, StatusReport] | None = None
        registry = CollectorRegistry()
        registry.register(_Collector(self._families))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as err:
            raise ConfigError(
                f"Metrics cannot be served at {host}:{port}: {getattr(err, 'strerror', None) or err}.",
                hint="Choose another port, or 0 for any free one: --metrics 0.",
            ) from err
        address = f"[{host}]" if ":" in host else host
        self.url = f"http://{address}:{self._server.server_port}/metrics"

    def take(self, report: StatusReport) -> None:
        """The newest report."""
        self._last = self._clock(), report

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _families(self) -> Iterator[Family]:
        if self._last is None:
            return
        taken_at, report = self._last
        age_s = self._clock() - taken_at
        if age_s > _MAX_AGE_S:
            raise RuntimeError(f"the newest report is {age_s:.0f} s old")
        yield from families(report, self._own)


class _Collector(Collector):
    def __init__(self, families: Callable[[], Iterator[Family]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        """See ``Collector``."""
        return self._families()


def families(report: StatusReport, own: PeerId) -> Iterator[Family]:
    """All metrics of a report with their values, as docs/metrics.md lists them.

    Every one has the label ``run``. Of workers there is only ``own``, so that the number of series does not grow with
    the swarm; the others are counted by state, and are in the totals.
    """
    run = report.run
    info = GaugeMetricFamily(
        "decentral_run_info", "What the run is, always 1.", labels=("run", "method", "codec", "version")
    )
    info.add_metric((run.run_id, run.method, run.codec, run.version), 1)
    yield info
    health = GaugeMetricFamily("decentral_health", "1 of what the swarm is, 0 of the others.", labels=("run", "health"))
    for each in Health:
        health.add_metric((run.run_id, each.value), float(each is report.health))
    yield health
    workers = GaugeMetricFamily("decentral_workers", "Workers that are known, by state.", labels=("run", "state"))
    for state, count in sorted(Counter(row.state for row in report.workers).items()):
        workers.add_metric((run.run_id, state), count)
    yield workers
    rows = [((row.id,), row) for row in report.workers if row.peer == own]
    yield from _section("run", metrics.RUN, run.run_id, (), [((), run)])
    yield from _section("totals", metrics.TOTALS, run.run_id, (), [((), report.totals)])
    yield from _section("worker", metrics.WORKER, run.run_id, ("worker",), rows)
    yield from _section("stage", metrics.STAGE, run.run_id, ("stage",), [((str(r.stage),), r) for r in report.stages])


def _section(
    section: str,
    of: Sequence[metrics.Metric],
    run: str,
    labels: Sequence[str],
    parts: Sequence[tuple[Sequence[str], object]],
) -> Iterator[Family]:
    """The metrics of parts of a report, each of which has its labels."""
    for metric in of:
        kind = CounterMetricFamily if metric.counts else GaugeMetricFamily
        family = kind(metrics.name(section, metric), metric.help, labels=("run", *labels))
        for values, part in parts:
            for _, value in metrics.known(part, [metric]):
                family.add_metric((run, *values), value)
        if family.samples:
            yield family
