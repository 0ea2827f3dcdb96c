"""The command line: one verb each, thin over the library.  `unitkit VERB --help` has examples."""

import os
import traceback

from rich.markup import escape

from unitkit.cli import (
    checkpoints,
    convert,
    encode,
    formats,
    info,
    score,
    serve,
    speech,
    transcribe,
    translate,
    tts,
    verify,
)
from unitkit.cli.show import app, errors

__all__ = [
    "app",
    "checkpoints",
    "convert",
    "encode",
    "formats",
    "info",
    "main",
    "score",
    "serve",
    "speech",
    "transcribe",
    "translate",
    "tts",
    "verify",
]


def main() -> None:
    """Entry point: expected errors become one clear line and exit status 2."""
    # Idle OpenMP threads spin by default: beside another busy process that made encoding eight times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(70) from None  # a fault of ours: never 1, which says that bad files were skipped
