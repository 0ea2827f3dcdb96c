#!/usr/bin/env bash
# LibriSpeech, 100 hours: text from WavLM-large units, K=2000, in 6000 pieces, as ESPnet's asr2 recipe.  Not measured here yet.
#   ./run.sh corpus=/corpora/LibriSpeech                       with train-clean-100, dev-*, test-* unpacked there
#   ./run.sh corpus=/corpora/LibriSpeech systems="k2000-bpe k2000 k2000-frames logmel"      the comparison of egs/prompts/asr
#   ./run.sh corpus=/corpora/LibriSpeech --stage train data.batch=32
# The stages are those of egs/prompts/asr: ./run.sh --help lists them.
egs=$(cd "$(dirname "$0")/../.." && pwd)
exec "$egs/prompts/asr/run.sh" home="$egs/librispeech/asr" reader=librispeech corpus=downloads/LibriSpeech langs=en made= copies=0 tokenizers= \
    options=subsets=train-clean-100,dev-clean,dev-other,test-clean,test-other tests="dev dev-other test test-other" \
    features=wavlm-large layer=21 units=2000 pieces=6000 systems=k2000-bpe beam=20 longest=0 data=data exp=exp/wavlm-large-l21 "$@"
