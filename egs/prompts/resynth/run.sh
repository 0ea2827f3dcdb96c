#!/usr/bin/env bash
# Speech to units and back, on studio prompts: train a vocoder on units, score it, write a page to listen to.
#   ./run.sh                                  English, the bundled tokenizer, ISTFT core
#   ./run.sh lang=es tokenizer=mini-100       another language, another tokenizer: a bundled one or a directory
#   ./run.sh features=mfcc units=200          fit a tokenizer first: MFCC, 200 units
#   ./run.sh features=hubert-base layer=6     another encoder (a short name, a hub id or a directory) and its layer
#   ./run.sh core=hifigan fit.max_minutes=20  conf/hifigan.yaml and any key of the trainer; ./run.sh score report
# Other corpora run these stages too, with their own home, corpus and conf: see egs/ljspeech/resynth/run.sh.
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" reader=prompts corpus=downloads options= lang=en data= \
    tokenizer= features= layer= units= codebooks=1 kind= core=istft metrics=all recognizer=auto exp= -- "$@"
cd "$home" # paths are relative to the recipe's own folder
[[ $reader != prompts || $options ]] || options=lang=$lang
[[ $kind ]] || { ((codebooks == 1)) && kind=plain || kind=residual; }
: "${data:=data/$lang}"
[[ $tokenizer$features$layer$units || $codebooks != 1 ]] || tokenizer=mini
[[ ! $tokenizer || ! $features$layer$units ]] || die "tokenizer=$tokenizer is used as it is: take out features, layer and units"
: "${features:=mfcc}" "${units:=100}"
name=$(basename "$features")${layer:+-l$layer}-k$units$( ((codebooks == 1)) || echo "x$codebooks")
: "${exp:=exp/$lang-$([[ $tokenizer ]] && basename "$tokenizer" || echo "$name")-$core}"

manifest() { skipping recipe prepare "$reader" "$corpus" "$data" ${options:+"$options"}; }
tokenizer() {
    [[ ! $tokenizer ]] || { echo "tokenizer $tokenizer is there" >&2; return 0; }
    skipping unitkit fit "$data/train.jsonl" -o "$exp/tokenizer" --features "$features" ${layer:+--layer "$layer"} \
        --units "$units" --codebooks "$codebooks" --kind "$kind"
}
units() { for s in train dev test; do skipping unitkit encode "$data/$s.jsonl" -t "${tokenizer:-$exp/tokenizer}" -o "$exp/units/$s.jsonl"; done; }
train() {
    recipe train_vocoder "conf/$core.yaml" out="$exp/vocoder" \
        train_manifest="$data/train.jsonl" train_units="$exp/units/train.jsonl" \
        dev_manifest="$data/dev.jsonl" dev_units="$exp/units/dev.jsonl" "${overrides[@]}"
}
synth() { # frames: as encoded; dedup: runs merged, durations predicted; shuffled: the control of every score
    speak() { unitkit vocode "$exp/units/test.jsonl" -m "$exp/vocoder" -o "$exp/synth/$1" --like "$data/test.jsonl" "${@:2}"; }
    speak frames
    speak dedup --durations predicted
    speak shuffled --shuffle 0
    for s in frames dedup shuffled; do
        unitkit encode "$exp/synth/$s/manifest.jsonl" -t "${tokenizer:-$exp/tokenizer}" -o "$exp/synth/$s/units.jsonl" --overwrite
    done
}
score() {
    unitkit score "$exp/synth/frames" "$exp/synth/dedup" --control "$exp/synth/shuffled" --metrics "$metrics" --recognizer "$recognizer" \
        --lang "$lang" --reference "$data/test.jsonl" --reference-units "$exp/units/test.jsonl" -o "$exp/scores.jsonl"
}
report() { unitkit report "$exp" --reference "$data/test.jsonl" -o "$exp/report.html" --title "Resynthesis: ${exp##*/}"; }

run_stages manifest tokenizer units train synth score report
