"""The page on a port of this machine: no share link, no analytics, nothing loaded from anywhere else."""

import os
import socket
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from unitkit.serve.work import Work

if TYPE_CHECKING:
    from fastapi import FastAPI

POLICY = (  # what the browser may load: this server's files and data: of the page itself; Gradio needs both unsafe-…
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
LOCAL = ("127.0.0.1", "localhost", "::1")
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


def check_gradio() -> None:
    """An error that says how to get Gradio where it is not installed."""
    if find_spec("gradio") is None:
        raise ImportError('the page needs Gradio, which is not installed: pip install "unitkit[serve]"')


def application(work: Work, *, queue: int = 8) -> "FastAPI":
    """The page as a web application."""
    check_gradio()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio
    from fastapi import FastAPI

    from unitkit.serve.page import blocks, looks

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Policy)
    return gradio.mount_gradio_app(
        app,
        blocks(work, queue=queue),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        max_file_size=round(work.limits.megabytes * 1e6),
        **looks(),
    )


class Policy:
    """Sends the browser the policy with every answer: what is not of this server is not loaded, whoever asks for it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        """Answers a request."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = ((b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer"))
                message["headers"] = [*message.get("headers", ()), *named]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def hold_port(host: str, port: int) -> socket.socket:
    """A socket that holds the port, 0 for any free one, and does not listen yet; an error where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        why = error.strerror or error
        raise OSError(f"port {port} of {host}: {why}; choose another with --port, or --host") from None
    return bound


def serve(
    work: Work, bound: socket.socket, *, queue: int = 8, browser: bool = False, on_ready: Callable[[str], None]
) -> None:
    """Serve the page until it is stopped; what visitors send and get is kept in a folder that goes with it."""
    check_gradio()
    import uvicorn

    host, port = bound.getsockname()[:2]
    shown = "localhost" if host in ("0.0.0.0", "::") else host
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    with TemporaryDirectory(prefix="unitkit-serve-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        config = uvicorn.Config(application(work, queue=queue), log_level="warning", timeout_graceful_shutdown=2)
        bound.listen()  # whoever comes from here on waits for an answer; before, models were being loaded
        on_ready(url)
        if browser:
            webbrowser.open(url)
        uvicorn.Server(config).run(sockets=[bound])
