"""The HTTP endpoints. They check what is asked, ask the desk, and write what it has."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from minisgl.message.records import Text
from minisgl.server.admin import add_admin
from minisgl.server.desk import Desk
from minisgl.server.errors import ApiError
from minisgl.server.exchange import Exchange, Patience, Question
from minisgl.server.fields import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    read,
)
from minisgl.server.guard import Guard
from minisgl.server.metrics import Metrics
from minisgl.server.options import ServerOptions
from minisgl.server.replies import Writer
from minisgl.server.schema import body_of, completed

_MOST_CHARACTERS: Final = 256  # of a prompt, for each position of the context


class Api(FastAPI):
    """An application whose OpenAPI document knows the bodies that are checked here."""

    def openapi(self) -> dict[str, Any]:
        """The document; see ``schema``."""
        if self.openapi_schema is None:
            made = get_openapi(title=self.title, version="1", routes=self.routes)
            self.openapi_schema = completed(made)
        return self.openapi_schema


def make_api(desk: Desk, options: ServerOptions, model: str) -> FastAPI:
    """The application. model: what clients call the model."""
    app = Api(title="minisgl", docs_url=None, redoc_url=None, redirect_slashes=False)
    created, mark = int(time.time()), secrets.token_hex(4)
    metrics = Metrics(desk, model)
    patience = Patience(options.keep_alive, options.stalled)

    def check_model(name: str | None) -> None:
        if name not in (None, model):
            raise ApiError(
                404,
                f"the model {name!r} does not exist; this server has {model!r}",
                param="model",
                code="model_not_found",
            )

    def complete(asked: ChatRequest | CompletionRequest) -> Response:
        check_model(asked.model)
        ready = desk.check_up()
        prompts = asked.prompts()
        for prompt in prompts:
            if isinstance(prompt, Text) and len(prompt.text) > _MOST_CHARACTERS * ready.max_seq_len:
                raise ApiError(
                    400,
                    f"the prompt has {len(prompt.text)} characters; that cannot fit into a context "
                    f"of {ready.max_seq_len} tokens",
                    param="prompt",
                    code="context_length_exceeded",
                )
        chat = isinstance(asked, ChatRequest)
        echo = isinstance(asked, CompletionRequest) and asked.echo
        sampling = asked.asked()
        if asked.stream_options is not None and not asked.stream:
            raise ApiError(400, "stream_options needs stream to be true", param="stream_options")
        writer = Writer(
            f"{'chatcmpl' if chat else 'cmpl'}-{mark}{desk.next_rid:08x}",
            "chat" if chat else "text",
            model,
            int(time.time()),
            sampling.logprobs is not None,
            bool(asked.stream_options and asked.stream_options.include_usage),
            [p.text if isinstance(p, Text) else None for p in prompts] if echo else (),
        )
        question = Question(prompts, asked.n, sampling, asked.stream, echo)
        return Exchange(desk, question, writer, patience, metrics.ended)

    @app.post("/v1/chat/completions", openapi_extra=body_of(ChatRequest, streams=True))
    async def chat_completions(request: Request) -> Response:
        """Go on with a conversation."""
        return complete(read(await request.body(), ChatRequest))

    @app.post("/v1/completions", openapi_extra=body_of(CompletionRequest, streams=True))
    async def completions(request: Request) -> Response:
        """Go on with a text."""
        return complete(read(await request.body(), CompletionRequest))

    @app.post("/tokenize", openapi_extra=body_of(TokenizeRequest))
    async def tokenize(request: Request) -> dict[str, Any]:
        """A prompt's token ids."""
        asked = read(await request.body(), TokenizeRequest)
        check_model(asked.model)
        ready = desk.check_up()
        ids = await desk.encode(asked.question())
        return {"tokens": ids, "count": len(ids), "max_model_len": ready.max_seq_len}

    @app.post("/detokenize", openapi_extra=body_of(DetokenizeRequest))
    async def detokenize(request: Request) -> dict[str, Any]:
        """The text of token ids."""
        asked = read(await request.body(), DetokenizeRequest)
        check_model(asked.model)
        return {"prompt": await desk.decode(asked.tokens)}

    def card() -> dict[str, Any]:
        return {
            "id": model,
            "object": "model",
            "created": created,
            "owned_by": "minisgl",
            "max_model_len": desk.check_up().max_seq_len,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """The model of this name."""
        check_model(name)
        return card()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server is ready."""
        desk.check_up()
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """Counters, gauges and histograms for Prometheus."""
        return Response(metrics.text(), media_type=metrics.media_type)

    add_admin(app, desk)
    _handle_errors(app)
    app.add_middleware(Guard, options=options)
    return app


def _handle_errors(app: FastAPI) -> None:
    Handler = Callable[[Request, Exception], Awaitable[Response]]

    def tell(make: Callable[[Request, Exception], ApiError]) -> Handler:
        async def handle(request: Request, error: Exception) -> Response:
            told = make(request, error)
            headers = {"content-type": "application/json", **told.headers}
            return Response(told.encoded(), told.status, headers)

        return handle

    def own(request: Request, error: Exception) -> ApiError:
        assert isinstance(error, ApiError)
        return error

    def http(request: Request, error: Exception) -> ApiError:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}"
        said = {404: f"there is no {what}", 405: f"{what} is not allowed; try another method"}
        headers = dict(error.headers or {})
        return ApiError(
            error.status_code, said.get(error.status_code, error.detail), headers=headers
        )

    def invalid(request: Request, error: Exception) -> ApiError:
        return ApiError(400, str(error))

    def broken(request: Request, error: Exception) -> ApiError:
        return ApiError(500, "the server made a mistake; its log says which")

    app.add_exception_handler(ApiError, tell(own))
    app.add_exception_handler(HTTPException, tell(http))
    app.add_exception_handler(RequestValidationError, tell(invalid))
    app.add_exception_handler(Exception, tell(broken))
