#!/usr/bin/env bash
# VCTK: one vocoder for 109 speakers by name; HuBERT-base layer 6, K=200, reference HiFi-GAN.  Not measured here yet.
#   ./run.sh corpus=/corpora/VCTK-Corpus-0.92
#   ./run.sh corpus=/corpora/VCTK-Corpus-0.92 options=mic=mic2
# The stages are those of egs/prompts/resynth: ./run.sh --help lists them.
egs=$(cd "$(dirname "$0")/../.." && pwd)
exec "$egs/prompts/resynth/run.sh" home="$egs/vctk/resynth" reader=vctk corpus=downloads/VCTK-Corpus-0.92 \
    features=hubert-base layer=6 units=200 core=hifigan "$@"
