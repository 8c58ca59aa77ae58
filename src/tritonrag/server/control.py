"""What the watchdog asks of a running server, and what it tells it to do; on this machine only."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tritonrag.client import Client
from tritonrag.client.administration import Administration
from tritonrag.client.probe import engine_stalled
from tritonrag.contract import MODELS
from tritonrag.errors import TritonragError
from tritonrag.server.ports import HOST, Ports

ASK_S = 2.0
"""Longest wait for an answer. One that does not come is no finding."""

PROBE_S = 5.0


class Control:
    """One server by its ports; ``key`` opens its closed APIs.

    Its connections stay open: a server whose open files are used up takes no new ones.
    """

    def __init__(self, ports: Ports, key: str) -> None:
        """Connect on first use."""
        url = f"{HOST}:{ports.grpc}"
        self._ports = ports
        self._server = Administration(url, key)
        self._client = Client(url, timeout=PROBE_S)
        self._http = httpx.Client(
            timeout=ASK_S, trust_env=False, limits=httpx.Limits(keepalive_expiry=None)
        )

    def ready(self) -> bool:
        """Return whether Triton says that all its models are ready."""
        return self._page(f"http://{HOST}:{self._ports.http}/v2/health/ready") is not None

    def serves(self, model: str) -> bool:
        """Return whether the server means to serve a model; True where it does not say."""
        try:
            return model in self._server.served()
        except TritonragError:
            return True

    def decoupled(self, model: str) -> bool:
        """Return whether a model answers with streams; True where the server does not say."""
        try:
            return self._server.decoupled(model)
        except TritonragError:
            return model not in MODELS or MODELS[model].decoupled

    def reload(self, model: str) -> None:
        """Unload a model and load it again.

        Raises:
            TritonragError: the server refuses, or does not answer in time.
        """
        self._server.unload(model)
        self._server.load(model)

    def work(self) -> dict[str, tuple[int, int]]:
        """Return the batches run and the requests that wait, by model; empty if not to be had."""
        page = self._page(f"http://{HOST}:{self._ports.metrics}/metrics")
        found: dict[str, tuple[int, int]] = {}
        for family in text_string_to_metric_families(page or ""):
            if family.name not in ("nv_inference_exec_count", "nv_inference_pending_request_count"):
                continue
            for sample in family.samples:
                model = sample.labels["model"]
                batches, waiting = found.get(model, (0, 0))
                if family.name == "nv_inference_exec_count":
                    batches += int(sample.value)
                else:
                    waiting += int(sample.value)
                found[model] = batches, waiting
        return found

    def stalled_engine(self) -> str:
        """Return ``generate`` where its engine says that it makes no step, else ""."""
        return "generate" if engine_stalled(self._client) else ""

    def _page(self, url: str) -> str | None:
        try:
            answer = self._http.get(url)
        except httpx.HTTPError:
            return None
        return answer.text if answer.is_success else None
