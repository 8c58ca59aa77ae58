"""What ``retrieve`` serves and how long it takes, in Triton's own ``/metrics``.

The embedded release (24.10) ends the whole server when two threads use custom metrics at a time, or
after a call that it refuses: so one thread makes, changes and drops all of them, and the models'
``execute`` only leaves notes for it. Metrics of the same name and labels in two processes are one
to Triton, and the first process to end takes it away from the other (a model that is loaded again
while the old one still runs): so each carries its process id.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import triton_python_backend_utils as pb_utils

from tritonrag.backend.conversions import log_info
from tritonrag.index import Query, Retriever
from tritonrag.index.searchable import Searchable

INTERVAL_S = 1.0
"""How often the metrics are brought up to date."""

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the histogram, in seconds."""

GAUGES = {
    "tritonrag_index_passages": "Passages of the live snapshot",
    "tritonrag_index_documents": "Documents of the live snapshot",
    "tritonrag_index_snapshot_created_seconds": (
        "When the live snapshot was made, in seconds since 1970; its age is time() minus this"
    ),
    "tritonrag_index_refused": "1 while the newest snapshot is refused, else 0",
}
SEARCHES = "tritonrag_searches_total", "Searches answered"
SECONDS = (
    "tritonrag_search_batch_seconds",
    "Seconds that the search for one batch of requests took",
)

KEPT_BATCHES = 100_000
"""Batches that wait to be counted: only where publishing has ended do they become so many."""


class IndexMetrics:
    """Publishes the collections of a retriever, and the searches in them, until it is closed."""

    def __init__(self, retriever: Retriever, version: int, interval_s: float = INTERVAL_S) -> None:
        """Start to publish, with the model's ``version`` among the labels."""
        self._retriever = retriever
        self._labels = {"version": str(version), "pid": str(os.getpid())}
        self._batches: deque[tuple[Counter[str], float]] = deque(maxlen=KEPT_BATCHES)
        self._series: dict[tuple[str, str], _Series] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(interval_s,), name="index-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Publish what is left and take all series out of ``/metrics``."""
        self._closed.set()
        self._thread.join()

    @contextmanager
    def timing(self, batch: Sequence[Sequence[Query]]) -> Iterator[None]:
        """Count the searches of a batch and the seconds that the block takes."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        counts = Counter(query.collection for queries in batch for query in queries)
        self._batches.append((counts, seconds))

    def _run(self, interval_s: float) -> None:
        try:
            while not self._closed.is_set():
                self._publish()
                self._closed.wait(interval_s)
            self._publish()
        except Exception as error:  # Whatever Triton says: searching goes on without metrics.
            log_info(f"metrics: not published any more: {error}")
        finally:
            self._series.clear()

    def _publish(self) -> None:
        collections, refused = self._retriever.collections, self._retriever.refusals
        known = collections.keys() | refused.keys()
        for name, collection in list(self._series):
            if collection and collection not in known:
                del self._series[name, collection]
        for collection in known:
            self._set(collection, collections.get(collection), collection in refused)
        self._take_searches(known)

    def _set(self, collection: str, snapshot: Searchable | None, refused: bool) -> None:
        for (name, doc), value in zip(
            GAUGES.items(), (*_facts(snapshot), float(refused)), strict=True
        ):
            kind = pb_utils.MetricFamily.GAUGE
            self._one(kind, name, doc, collection).metric.set(value)
        self._one(pb_utils.MetricFamily.COUNTER, *SEARCHES, collection)

    def _take_searches(self, known: set[str]) -> None:
        seconds = self._one(pb_utils.MetricFamily.HISTOGRAM, *SECONDS, buckets=list(BUCKETS))
        total: Counter[str] = Counter()
        for _ in range(len(self._batches)):
            counts, took = self._batches.popleft()
            total += counts
            seconds.metric.observe(took)
        for collection in total.keys() & known:
            searches = self._one(pb_utils.MetricFamily.COUNTER, *SEARCHES, collection)
            searches.metric.increment(float(total[collection]))

    def _one(self, kind: Any, name: str, doc: str, collection: str = "", **more: Any) -> _Series:
        found = self._series.get((name, collection))
        if found is None:
            of = {"collection": collection} if collection else {}
            found = _Series(kind, name, doc, self._labels | of, **more)
            self._series[name, collection] = found
        return found


class _Series:
    """One metric with its labels. A family of its own, since only with it the metric goes away."""

    def __init__(
        self, kind: Any, name: str, doc: str, labels: Mapping[str, str], **more: Any
    ) -> None:
        self._family = pb_utils.MetricFamily(name=name, description=doc, kind=kind)
        self.metric = self._family.Metric(labels=dict(labels), **more)


def _facts(snapshot: Searchable | None) -> tuple[float, float, float]:
    if snapshot is None:
        return 0.0, 0.0, 0.0
    manifest = snapshot.manifest
    created = datetime.fromisoformat(manifest.created).timestamp()
    return float(manifest.passages), float(manifest.documents), created
