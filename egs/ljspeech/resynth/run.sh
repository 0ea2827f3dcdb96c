#!/usr/bin/env bash
# LJSpeech: HuBERT-base layer 6, K=100, and HiFi-GAN at the size of the unit vocoder papers.  Not measured here yet.
#   ./run.sh corpus=/corpora/LJSpeech-1.1
#   ./run.sh corpus=/corpora/LJSpeech-1.1 units=200 --stage tokenizer
# The stages are those of egs/prompts/resynth: ./run.sh --help lists them.
egs=$(cd "$(dirname "$0")/../.." && pwd)
exec "$egs/prompts/resynth/run.sh" home="$egs/ljspeech/resynth" reader=ljspeech corpus=downloads/LJSpeech-1.1 \
    features=hubert-base layer=6 core=hifigan "$@"
