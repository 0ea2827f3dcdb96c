"""Make a CUDA-linked torchaudio importable beside a CPU-only torch, by moving its compiled libraries aside."""

import importlib.util
import subprocess
import sys
from pathlib import Path


def imports() -> bool:
    """Whether `import torchaudio` works in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", "import torchaudio"], capture_output=True).returncode == 0


def main() -> int:
    """Print what was found and done; exit status 1 if torchaudio still fails."""
    spec = importlib.util.find_spec("torchaudio")
    if spec is None or spec.origin is None:
        print("torchaudio: not installed, nothing to repair")
        return 0
    if imports():
        print("torchaudio: imports, nothing to repair")
        return 0
    libraries = sorted((Path(spec.origin).parent / "lib").glob("*.so"))
    for library in libraries:
        library.rename(library.with_suffix(".so.cuda-only"))
    print(f"torchaudio: linked against CUDA, torch is not; moved aside {[p.name for p in libraries]}")
    print("torchaudio: Python parts work now; forced_align, rnnt_loss and CUDA decoders do not")
    return 0 if imports() else 1


if __name__ == "__main__":
    sys.exit(main())
