"""What an administrator may do to a running engine, and what others may see of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from minisgl.server.desk import Desk
from minisgl.server.fields import AbortRequest, RecordRequest, StepRequest, read
from minisgl.server.schema import body_of


def add_admin(app: FastAPI, desk: Desk) -> None:
    """Add the endpoints under /admin. Each answers with the engine as it then stands."""

    @app.post("/admin/pause")
    async def pause() -> dict[str, Any]:
        """Make no further step; what is asked meanwhile waits."""
        return await desk.order("pause")

    @app.post("/admin/resume")
    async def resume() -> dict[str, Any]:
        """Step by itself again."""
        return await desk.order("resume")

    @app.post("/admin/step", openapi_extra=body_of(StepRequest))
    async def step(request: Request) -> dict[str, Any]:
        """Let a paused engine make some steps."""
        return await desk.order("step", steps=read(await request.body(), StepRequest).steps)

    @app.post("/admin/abort", openapi_extra=body_of(AbortRequest))
    async def abort(request: Request) -> dict[str, Any]:
        """End requests early."""
        rids = read(await request.body(), AbortRequest).rids
        return await desk.order("abort", **({} if rids is None else {"rids": rids}))

    @app.post("/admin/flush_cache")
    async def flush_cache() -> dict[str, Any]:
        """Empty the prefix cache; refused while requests run."""
        return await desk.order("flush_cache")

    @app.post("/admin/record", openapi_extra=body_of(RecordRequest))
    async def record(request: Request) -> dict[str, Any]:
        """Begin a recording, or end it."""
        return await desk.order("record", on=read(await request.body(), RecordRequest).on)

    @app.get("/admin/watch", response_class=StreamingResponse)
    async def watch_all() -> StreamingResponse:
        """The run while it happens, as server-sent events: the lines of a trace file."""
        return await _watched(desk, redact=False)

    @app.get("/watch", response_class=StreamingResponse)
    async def watch() -> StreamingResponse:
        """The same without what was said."""
        return await _watched(desk, redact=True)

    @app.get("/admin/config")
    async def config() -> dict[str, Any]:
        """The engine's configuration, and how it stands."""
        return await desk.order("config")


async def _watched(desk: Desk, redact: bool) -> StreamingResponse:
    stack = AsyncExitStack()
    viewer = await stack.enter_async_context(desk.watching(redact))

    async def events() -> AsyncIterator[str]:
        async with stack:
            async for event in viewer.events():
                yield event

    headers = {"cache-control": "no-cache"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)
