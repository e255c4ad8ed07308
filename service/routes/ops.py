"""What operators and curious people ask: health, version, metrics, the interface itself, a plain page at ``/``.

``/livez`` says that the process answers, nothing else: restarting replicas does not mend a store. ``/readyz`` says
whether this replica should get work: it started, reached the store at least once, and is not told to end. The store's
state of this moment is in its body and in a metric, not in its status, because a readiness that turns red on every
replica at once empties the balancer.
"""

from html import escape
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from service import __version__, telemetry
from service.asgi import json_response
from service.gate import OPEN_WARNING, Gate
from service.life import Life
from service.store_watch import StoreWatch

_STORE: Final = {"up": "up", "refusing": "refusing", "away": "down"}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Baton</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}}
pre{{background:#8881;padding:1rem;overflow-x:auto}}</style></head><body>
<h1>Baton {version}</h1>
<p>Keeps conversations with Claude in Redis, so that any replica can carry them on.</p>
<p>Store: <strong>{store}</strong>. Replica: {replica}. State: {state}.</p>
<p>Try it; the second request knows what the first one said:</p>
<pre>curl -s {origin}/v1/chat/completions -H 'content-type: application/json'{key} \\
  -d '{{"model":"{model}","session_id":"my-chat","messages":[{{"role":"user","content":"My name is Ada."}}]}}'
curl -s {origin}/v1/chat/completions -H 'content-type: application/json'{key} \\
  -d '{{"model":"{model}","session_id":"my-chat","messages":[{{"role":"user","content":"What is my name?"}}]}}'</pre>
<p>GET: <a href="/v1/sessions">/v1/sessions</a>, <a href="/v1/sessions/stats">its numbers</a>,
<a href="/v1/sessions/my-chat">/v1/sessions/my-chat</a>, <a href="/v1/sessions/my-chat/messages">its
messages</a>, <a href="/v1/models">/v1/models</a>, <a href="/health">/health</a>, <a href="/livez">/livez</a>,
<a href="/readyz">/readyz</a>, <a href="/version">/version</a>, <a href="/metrics">/metrics</a>, <a
href="/openapi.json">/openapi.json</a>.</p>
</body></html>
"""


class OpsRoutes:
    """The endpoints; each is an ASGI application."""

    def __init__(
        self,
        store: StoreWatch,
        life: Life,
        gate: Gate,
        *,
        replica: str,
        default_model: str,
        document: bytes,
    ) -> None:
        self._store = store
        self._life = life
        self._gate = gate
        self._replica = replica
        self._default_model = default_model
        self._document = document

    def _state(self) -> dict[str, Any]:
        return {
            "status": "draining" if self._life.leaving else "ready" if self._store.reached else "starting",
            "store": _STORE[self._store.health],
            "replica": self._replica,
            "auth": self._gate.mode,
            "warnings": [OPEN_WARNING] if self._gate.mode == "open" else [],
        }

    async def livez(self, request: Request) -> Response:
        """``GET /livez``: the process answers."""
        return json_response({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """``GET /readyz``: 200 if this replica should get work, else 503."""
        state = self._state()
        return json_response(state, status=200 if state["status"] == "ready" else 503)

    async def health(self, request: Request) -> Response:
        """``GET /health``: for people; ``healthy`` means that session turns can be served now."""
        state = self._state()
        healthy = state["status"] == "ready" and self._store.health == "up"
        body = {**state, "status": "healthy" if healthy else "degraded", "service": "baton", "state": state["status"]}
        return json_response(body)

    async def version(self, request: Request) -> Response:
        """``GET /version``."""
        return json_response({"service": "baton", "version": __version__, "api_version": "v1"})

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``: Prometheus text."""
        return Response(generate_latest(telemetry.REGISTRY), headers={"content-type": CONTENT_TYPE_LATEST})

    async def openapi(self, request: Request) -> Response:
        """``GET /openapi.json``: what this replica understands, for programs."""
        return Response(self._document, media_type="application/json")

    async def page(self, request: Request) -> Response:
        """``GET /``: what this is, its state, a curl to try."""
        state = self._state()
        page = _PAGE.format(
            version=__version__,
            store=state["store"],
            replica=escape(self._replica),
            state=state["status"],
            origin=escape(str(request.base_url).rstrip("/")),
            model=escape(self._default_model),
            key="" if state["auth"] == "open" else escape(' -H "authorization: Bearer $BATON_KEY"'),
        )
        headers = {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": (
                "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
                "frame-ancestors 'none'"
            ),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }
        return Response(page, headers=headers)
