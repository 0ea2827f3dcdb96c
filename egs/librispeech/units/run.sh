#!/usr/bin/env bash
# LibriSpeech: a tokenizer fitted on train-clean-100, and units of every split in two formats.  Not measured here yet.
#   ./run.sh corpus=/corpora/LibriSpeech                            HuBERT-base layer 6, K=100
#   ./run.sh corpus=/corpora/LibriSpeech units=200                  K=200
#   ./run.sh corpus=/corpora/LibriSpeech features=mfcc layer=       the targets of HuBERT's first iteration
source "$(dirname "$0")/../../../tools/stages.sh"
variables corpus=downloads/LibriSpeech subsets=train-clean-100,dev-clean,test-clean data=data \
    features=hubert-base layer=6 units=100 max_frames=1000000 exp= -- "$@"
((${#overrides[@]} == 0)) || die "no variable '${overrides[0]%%=*}'; the variables are: ${declared[*]}"
cd "$(dirname "$0")" # paths are relative to the recipe's own folder
: "${exp:=exp/$(basename "$features")${layer:+-l$layer}-k$units}"
splits() { for path in "$data"/*.jsonl; do basename "$path" .jsonl; done; }

manifest() { skipping recipe prepare librispeech "$corpus" "$data" subsets="$subsets"; }
tokenizer() {
    skipping unitkit fit "$data/train.jsonl" -o "$exp/tokenizer" --features "$features" ${layer:+--layer "$layer"} \
        --units "$units" --max-frames "$max_frames"
}
units() { for s in $(splits); do skipping unitkit encode "$data/$s.jsonl" -t "$exp/tokenizer" -o "$exp/units/$s.jsonl"; done; }
bitrate() { for s in $(splits); do unitkit info "$exp/units/$s.jsonl"; done; }
km() { # the text format of fairseq, with its tsv
    mkdir -p "$exp/km"
    for s in $(splits); do
        unitkit export "$exp/units/$s.jsonl" -o "$exp/km/$s.km" --format km --manifest "$data/$s.jsonl"
    done
}

run_stages manifest tokenizer units bitrate km
