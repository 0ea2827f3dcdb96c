#!/usr/bin/env bash
# Makes a virtual environment with the tested set of packages.  Needs no root.
#     bash tools/setup.sh [.venv]          PYTHON=python3.12 bash tools/setup.sh .venv
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
"$python" -c 'import sys; assert sys.version_info >= (3, 11), f"unitkit needs Python 3.11 or newer, this is {sys.version}"'

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
[[ -x $venv/bin/python ]] || { say "creating $venv"; "$python" -m venv "$venv"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
torch_version=$(sed -n 's/^torch==//p' constraints.txt)

if nvidia-smi >/dev/null 2>&1; then
    say "GPU found: torch $torch_version from the default index"
    pip install -q "torch==$torch_version"
else
    # A build tagged +cpu from the configured indexes where there is one, else PyTorch's own CPU index.
    say "no GPU: CPU build of torch $torch_version"
    pip install -q "torch==$torch_version+cpu" 2>/dev/null ||
        pip install -q "torch==$torch_version" --index-url https://download.pytorch.org/whl/cpu
fi

say "installing unitkit and the tested set (constraints.txt)"
pip install -q -c constraints.txt -e '.[dev,bench,eval,prompts,video,parquet,lhotse,torchaudio,ray,openvino,align,serve]'
# These pin old versions of packages they do not need; what they do need is installed above.
pip install -q --no-deps -r tools/no-deps.txt

# PyPI's torchaudio links against CUDA: beside a CPU-only torch its import fails and takes transformers down with it.
# Without its compiled parts the Python parts work (Kaldi MFCC, mel, resampling); forced_align and rnnt_loss do not.
"$venv/bin/python" tools/repair_torchaudio.py

"$venv/bin/unitkit" doctor
