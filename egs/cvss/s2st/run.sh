#!/usr/bin/env bash
# CVSS-C, French to English: wav2vec 2.0 to HuBERT-base layer 6, K=100 units, as SpeechBrain's recipe.  Not measured here yet.
#   ./run.sh corpus=/corpora/cvss options=common_voice=/corpora/cv-corpus-4-2019-12-10/fr
#   ./run.sh corpus=/corpora/cvss --stage train data.batch=16
# The stages are those of egs/prompts/s2st: ./run.sh --help lists them.
egs=$(cd "$(dirname "$0")/../.." && pwd)
exec "$egs/prompts/s2st/run.sh" home="$egs/cvss/s2st" reader=cvss corpus=downloads/cvss source=fr target=en made= \
    features=hubert-base layer=6 units=100 systems=paper baselines=random min_words=0 "$@"
