"""Recipes and tools are files, not a package: how tests import one."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def recipe(name: str) -> ModuleType:
    """recipes/<name>.py, imported once."""
    return load_file(ROOT / "recipes" / f"{name}.py")


def load_file(path: Path) -> ModuleType:
    """A file as a module of its name, imported once."""
    name = path.stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
