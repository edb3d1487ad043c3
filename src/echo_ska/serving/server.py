"""The application on a socket, by uvicorn."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

GRACE_SECONDS = 3.0
"""How long answers under way may go on when the server is stopped; then they are called off."""
ENDING_SECONDS = 15
"""How long they then have to end, which they do between two tokens, or two segments of a prompt."""


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        call_off = asyncio.create_task(self._call_off_later())
        try:
            await super().shutdown(sockets)
        finally:
            call_off.cancel()

    async def _call_off_later(self) -> None:
        await asyncio.sleep(GRACE_SECONDS)
        await asyncio.to_thread(self.config.app.state.call_off)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        host: an address or name of this machine.
        port: 0 takes a free one.

    Raises:
        OSError: the address is not this machine's, or the port is taken; one sentence.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)  # a name that is not known has one of its own kind, below 0
        reason = os.strerror(number) if number and number > 0 else getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot listen at {host} port {port}: {reason}; choose another --host or --port") from None


def address(listening: socket.socket) -> str:
    """The URL of a listening socket, as clients take it."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def make_server(app: Starlette) -> uvicorn.Server:
    """The server of an application, quiet but for warnings and errors; `run(sockets=[...])` runs it."""
    return _Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(GRACE_SECONDS + ENDING_SECONDS),
        )
    )


def run(app: Starlette, listening: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until the process is told to end (Ctrl-C, SIGTERM).

    Args:
        app: of `create_app`.
        listening: of `bind`.
        ready: called with the address before the first request is taken.
    """
    ready(address(listening))
    make_server(app).run(sockets=[listening])
