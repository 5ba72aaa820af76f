"""The application: which path is answered by what, and in what order a request is checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive

from llama2np.analysis import interactive
from llama2np.llama import Llama
from llama2np.serve import guard, looking
from llama2np.serve.chats import chats
from llama2np.serve.classify import classify
from llama2np.serve.completions import completions
from llama2np.serve.embeddings import embeddings
from llama2np.serve.errors import ApiError
from llama2np.serve.fields import Fields
from llama2np.serve.generating import Gone
from llama2np.serve.service import Service

Answer = Callable[[Service, Fields, Receive], Awaitable[Any]]
_POSTS: dict[str, Answer] = {
    "/v1/completions": completions,
    "/v1/chat/completions": chats,
    "/v1/embeddings": embeddings,
    "/v1/classify": classify,
    "/classify": classify,  # where vLLM has it
    "/look/lens": looking.lens,
    "/look/attention": looking.attention,
    "/look/generate": looking.generate,
}
_KINDS = "html", "css", "js"  # of the page's files


def make_app(service: Service) -> Starlette:
    """The ASGI application. It begins the threads of the service, and ends them."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.open()
        yield
        service.close()

    routes = [
        Route(path, _post(service, answer), methods=["POST"]) for path, answer in _POSTS.items()
    ]
    gets: dict[str, tuple[Callable[[Service], Response], bool]] = {
        "/v1/models": (_models, True),
        "/metrics": (_metrics, True),
        "/look/facts": (_facts, True),
        "/": (_page, False),
        "/health": (_health, False),
    }
    for path, (answer, secret) in gets.items():
        routes.append(Route(path, _get(service, answer, secret), methods=["GET"]))
    routes.append(Route("/v1/models/{name:path}", _get(service, _models, True), methods=["GET"]))
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _unknown})


def _post(service: Service, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def checked(request: Request) -> Any:
        guard.check_host(request, service.hosts)
        guard.check_key(request, service.api_key)
        fields = Fields.parsed(await guard.body_of(request, service.max_body))
        return await answer(service, fields, request.receive)

    return _reported(service, checked)


def _get(
    service: Service, answer: Callable[[Service], Response], secret: bool
) -> Callable[[Request], Awaitable[Response]]:
    async def checked(request: Request) -> Response:
        guard.check_host(request, service.hosts)
        if secret:
            guard.check_key(request, service.api_key)
        name = request.path_params.get("name", service.name)
        service.check_model(Fields({"model": name}))
        if "name" in request.path_params:
            return JSONResponse(_model(service))
        return answer(service)

    return _reported(service, checked)


def _reported(
    service: Service, answer: Callable[[Request], Awaitable[Any]]
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint whose errors are JSON, and whose answers are counted."""

    async def endpoint(request: Request) -> Any:
        path = request.scope["route"].path
        try:
            response = await answer(request)
            status = getattr(response, "status_code", 200)
        except ApiError as error:
            response, status = error.response(), error.status
        except Gone:
            response, status = Response(status_code=499), 499  # nobody reads it
        except Exception:
            service.metrics.answered(path, 500)
            raise
        service.metrics.answered(path, status)
        return response

    return endpoint


async def _unknown(request: Request, error: Exception) -> Response:
    """404 and 405 as JSON."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    message = f"there is nothing at {path}"
    if error.status_code == 405:
        message = f"{path} does not take {method}"
    response = ApiError(error.status_code, message).response()
    response.headers.update(error.headers or {})
    return response


def _models(service: Service) -> Response:
    return JSONResponse({"object": "list", "data": [_model(service)]})


def _model(service: Service) -> dict[str, Any]:
    owner = {"object": "model", "created": service.created, "owned_by": "llama2np"}
    return {"id": service.name, **owner, "max_model_len": service.model.config.seq_len}


def _health(service: Service) -> Response:
    return JSONResponse({"status": "ok"})


def _metrics(service: Service) -> Response:
    gauges = {}
    if isinstance(service.model, Llama):
        worker = service.worker
        batch = worker.batch
        gauges = {
            "texts_running": ("Texts that are being generated or wait.", worker.busy),
            "texts_waiting": ("Texts that wait.", worker.waiting),
            "cache_chunks": ("Chunks of KV cache in use.", worker.pages),
            "cache_chunks_max": ("The most chunks of KV cache.", batch.max_pages),
        }
    kind = "text/plain; version=0.0.4; charset=utf-8"
    return PlainTextResponse(service.metrics.text(gauges), media_type=kind)


def _facts(service: Service) -> Response:
    return JSONResponse(looking.facts(service))


def _page(service: Service) -> Response:
    """The page. Its own script runs, and no other; it can reach this server, and no other."""
    folder = files("llama2np.serve").joinpath("page")
    html, css, js = (folder.joinpath(f"page.{kind}").read_text("utf-8") for kind in _KINDS)
    text = interactive.page(html, {"page.css": css, "page.js": js})
    policy = (
        f"default-src 'none'; script-src {interactive.script_hash(text)}; "
        "style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return HTMLResponse(text, headers=headers | {"X-Content-Type-Options": "nosniff"})
