#!/usr/bin/env bash
# LJSpeech: text to two books of units to speech, one voice, at the size of the paper.  Not measured here yet.
#   ./run.sh corpus=/corpora/LJSpeech-1.1
#   ./run.sh corpus=/corpora/LJSpeech-1.1 front=phonemes --stage train
# The stages are those of egs/prompts/tts: ./run.sh --help lists them.
egs=$(cd "$(dirname "$0")/../.." && pwd)
exec "$egs/prompts/tts/run.sh" home="$egs/ljspeech/tts" reader=ljspeech corpus=downloads/LJSpeech-1.1 data=data every=10 voices= sets=seen \
    features=hubert-base layer=6 units=320 metrics=wer,cer,dnsmos "$@"
