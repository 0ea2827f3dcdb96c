#!/usr/bin/env bash
# LJSpeech: units to mels to speech, the other route from text, at the size of the paper.  Not measured here yet.
#   ./run.sh                    run ../tts/run.sh first
# The stages are those of egs/prompts/tts-mel: ./run.sh --help lists them.
egs=$(cd "$(dirname "$0")/../.." && pwd)
exec "$egs/prompts/tts-mel/run.sh" home="$egs/ljspeech/tts-mel" voices= sets=seen metrics=wer,cer,dnsmos "$@"
