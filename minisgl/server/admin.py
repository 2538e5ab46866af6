"""What an administrator may do to a running engine. The guard has checked the key."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request

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

    @app.get("/admin/config")
    async def config() -> dict[str, Any]:
        """The engine's configuration, and how it stands."""
        return await desk.order("config")
