#!/usr/bin/env bash
# Fisher, Spanish to English: the S2UT paper's model on log-mels, HuBERT-base layer 6, K=100 units.  Not measured here yet.
#   ./run.sh corpus=/corpora/fisher        with LDC2010S01, LDC2010T04 and fisher-callhome-corpus below it
#   ./run.sh corpus=/corpora/fisher --stage train data.batch=32
# The stages are those of egs/prompts/s2st: ./run.sh --help lists them.
egs=$(cd "$(dirname "$0")/../.." && pwd)
exec "$egs/prompts/s2st/run.sh" home="$egs/fisher/s2st" reader=fisher corpus=downloads/fisher source=es target=en made=translations \
    features=hubert-base layer=6 units=100 systems=paper baselines=random min_words=0 "$@"
