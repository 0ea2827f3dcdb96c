#!/usr/bin/env bash
# Studio prompts: units from a tokenizer fitted here, a vocoder back to speech, scores and one page to listen to.
#   ./run.sh                                  English, MFCC, K=100, ISTFT core
#   ./run.sh lang=es units=200                another language, more units
#   ./run.sh features=hubert-base layer=6     another encoder (a short name, a hub id or a directory) and its layer
#   ./run.sh core=hifigan train.minutes=30    conf/hifigan.yaml, and any key of it
# Other corpora use these stages too: see ../../ljspeech/resynth/run.sh.
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" name=prompts corpus=downloads lang=en \
    features=mfcc layer= units=100 codebooks=1 core=istft data= exp= -- "$@"
cd "$home" # every path is relative to the recipe's folder
: "${data:=data/$lang}" "${exp:=exp/$lang-${features##*/}${layer:+-L$layer}-k$units${codebooks/#/x}-$core}"
