#!/usr/bin/env bash
# VCTK: the UUVC paper's model, HuBERT-base layer 6, K=200, mels at 22.05 kHz, ten speakers never heard.  Not measured here yet.
#   ./run.sh corpus=/corpora/VCTK-Corpus-0.92
#   ./run.sh corpus=/corpora/VCTK-Corpus-0.92 --stage converter data.batch=32
# The stages are those of egs/prompts/vc: ./run.sh --help lists them.
egs=$(cd "$(dirname "$0")/../.." && pwd)
exec "$egs/prompts/vc/run.sh" home="$egs/vctk/vc" reader=vctk corpus=downloads/VCTK-Corpus-0.92 data=data exp=exp/hubert-base-l6-k200 \
    features=hubert-base layer=6 conf=paper encoder=learned mel="--sample-rate 22050 --hop 256" \
    unseen=p225,p226,p227,p228,p229,p230,p231,p232,p233,p234 pairs=200 "$@"
