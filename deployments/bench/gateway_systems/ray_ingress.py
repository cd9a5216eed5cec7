"""`python -m deployments.bench.gateway_systems.ray_ingress PORT ENGINE_URL FOLDER`: as users write it.

A FastAPI ingress that passes requests on with aiohttp, in one replica; nothing is checked or counted. The
environment decides between Serve's default proxy and HAProxy with THROUGHPUT_OPTIMIZED (`ray_serve.py`).
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

import aiohttp
import ray
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from ray import serve

from deployments.ray_cluster import OBJECT_STORE_BYTES

app = FastAPI()


@serve.ingress(app)
class Ingress:
    def __init__(self, engine_url: str) -> None:
        self._engine_url = engine_url
        self._session: aiohttp.ClientSession | None = None

    @app.post("/v1/chat/completions")
    async def complete(self, request: Request) -> Response:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        answer = await self._session.post(
            f"{self._engine_url}/v1/chat/completions",
            data=await request.body(),
            headers={"content-type": "application/json"},
        )
        if answer.content_type == "text/event-stream":
            return StreamingResponse(answer.content.iter_any(), media_type="text/event-stream")
        return Response(await answer.read(), answer.status, media_type="application/json")


def main(port: int, engine_url: str, temporary_folder: Path) -> None:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=str(temporary_folder),
        _node_ip_address="127.0.0.1",
    )
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": port},
        logging_config={"enable_access_log": False},
    )
    ingress = serve.deployment(Ingress).options(max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0})
    serve.run(ingress.bind(engine_url), name="bench", route_prefix="/")
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
