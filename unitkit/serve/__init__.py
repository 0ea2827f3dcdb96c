"""The page of `unitkit serve`: models loaded once, the functions behind its tabs, the server.  Gradio is an extra."""

from unitkit.serve.models import Models, load_models
from unitkit.serve.server import LOCAL, application, check_gradio, hold_port, serve
from unitkit.serve.work import Limits, Result, Work, unit_text

__all__ = [
    "LOCAL",
    "Limits",
    "Models",
    "Result",
    "Work",
    "application",
    "check_gradio",
    "hold_port",
    "load_models",
    "serve",
    "unit_text",
]
