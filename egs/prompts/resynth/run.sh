#!/usr/bin/env bash
# Speech to units and back, on studio prompts: fit a tokenizer, train a vocoder, score it, write a page to listen to.
#   ./run.sh                                  English, MFCC, K=100, ISTFT core
#   ./run.sh lang=es units=200                another language, more units
#   ./run.sh features=hubert-base layer=6     another encoder (a short name, a hub id or a directory) and its layer
#   ./run.sh core=hifigan fit.max_minutes=20  conf/hifigan.yaml and any key of the trainer
#   ./run.sh --stage train --stop-stage synth, ./run.sh score report, ./run.sh --stage 5
# Other corpora run these stages too, with their own home, corpus and conf: see egs/ljspeech/resynth/run.sh.
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" reader=prompts corpus=downloads options= lang=en data= \
    features=mfcc layer= units=100 codebooks=1 kind= core=istft metrics=all recognizer=auto exp= -- "$@"
cd "$home" # paths are relative to the recipe's own folder
[[ $reader != prompts || $options ]] || options=lang=$lang
[[ $kind ]] || { ((codebooks == 1)) && kind=plain || kind=residual; }
: "${data:=data/$lang}"
: "${exp:=exp/$lang-$(basename "$features")${layer:+-l$layer}-k$units$( ((codebooks == 1)) || echo "x$codebooks")-$core}"

manifest() { skipping python "$root/recipes/prepare.py" "$reader" "$corpus" "$data" ${options:+"$options"}; }
tokenizer() {
    skipping unitkit fit "$data/train.jsonl" -o "$exp/tokenizer" --features "$features" ${layer:+--layer "$layer"} \
        --units "$units" --codebooks "$codebooks" --kind "$kind"
}
units() { for s in train dev test; do skipping unitkit encode "$data/$s.jsonl" -t "$exp/tokenizer" -o "$exp/units/$s.jsonl"; done; }
train() {
    python "$root/recipes/train_vocoder.py" "conf/$core.yaml" out="$exp/vocoder" \
        train_manifest="$data/train.jsonl" train_units="$exp/units/train.jsonl" \
        dev_manifest="$data/dev.jsonl" dev_units="$exp/units/dev.jsonl" "${overrides[@]}"
}
synth() { # frames: as encoded; dedup: runs merged, durations predicted; shuffled: the control of every score
    speak() { unitkit vocode "$exp/units/test.jsonl" -m "$exp/vocoder" -o "$exp/synth/$1" --like "$data/test.jsonl" "${@:2}"; }
    speak frames
    speak dedup --durations predicted
    speak shuffled --shuffle 0
    for s in frames dedup shuffled; do
        unitkit encode "$exp/synth/$s/manifest.jsonl" -t "$exp/tokenizer" -o "$exp/synth/$s/units.jsonl" --overwrite
    done
}
score() {
    unitkit score "$exp/synth/frames" "$exp/synth/dedup" --control "$exp/synth/shuffled" --metrics "$metrics" --recognizer "$recognizer" \
        --lang "$lang" --reference "$data/test.jsonl" --reference-units "$exp/units/test.jsonl" -o "$exp/scores.jsonl"
}
report() { unitkit report "$exp" --reference "$data/test.jsonl" -o "$exp/report.html" --title "Resynthesis: ${exp##*/}"; }

run_stages manifest tokenizer units train synth score report
