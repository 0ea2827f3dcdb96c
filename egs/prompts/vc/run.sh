#!/usr/bin/env bash
# Voice, melody and rhythm of one recording for the words of another: train a converter, convert into voices that it has
# heard and into voices that it has not, and measure what each mode moves and what it leaves.
#   ./run.sh                                  prompts of five languages and made voices (egs/prompts/voices)
#   ./run.sh converter fit.max_minutes=60     one stage, any key of recipes/train_vc.py
#   ./run.sh encoder=learned exp=exp/learned  voices heard by an encoder that is learned along, as in the paper
# Other corpora run these stages too, with their own home and conf: see egs/vctk/vc/run.sh.
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" reader=prompts corpus=downloads options= data=../voices/data exp=exp/mini \
    tokenizer=mini features= layer= units=200 conf=small encoder=own unseen= mel= pairs=60 sets="seen unseen" \
    modes="copy rhythm pitch-energy prosody speaker exact-speaker all" metrics=all quality=dnsmos recognizer=auto -- "$@"
cd "$home" # paths are relative to the recipe's own folder
[[ ! $features || $tokenizer != mini ]] || tokenizer=$exp/tokenizer
d=$exp/data own=$encoder; case $encoder in own) own=$exp/speaker ;; learned) own= ;; esac # else a directory
read -ra how <<<"$mel"; read -ra ways <<<"$modes"; IFS=, read -ra held <<<"$unseen"
taught() { keys=(); for s in train dev; do keys+=("${s}_manifest=$d/$s.jsonl" "${s}_units=${1/\%s/$s}"); done; } # unit files, %s for the split
vocode() { taught "$exp/mels/$1%s/units.jsonl"; recipe train_vocoder "conf/$2.yaml" out="$3" data.names=false "${keys[@]}" \
    data.features_train="$exp/mels/$1train" data.features_dev="$exp/mels/$1dev" "${@:4}"; }

data() { # {train,dev}, sources of the test, and voices seen and unseen
    if [[ $reader == prompts ]]; then
        "$root/egs/prompts/voices/run.sh" prompts made join data="$(realpath -m "$data")"
        set -- "$data/prompts/test.jsonl" "$data/made/dev.jsonl" "$data/made/test.jsonl"
    else skipping recipe prepare "$reader" "$corpus" "$data" ${options:+"$options"}; set -- "$data/test.jsonl" "" "$data/test.jsonl"; fi
    for s in train dev; do recipe join "$d/$s.jsonl" "$data/$s.jsonl" "${held[@]/#/--without=}"; done
    recipe join "$d/sources.jsonl" "$1" "${held[@]/#/--without=}"
    recipe join "$d/seen.jsonl" "$1" ${2:+"$2"} "${held[@]/#/--without=}"
    recipe join "$d/unseen.jsonl" "$3" "${held[@]/#/--speaker=}"; }
units() { [[ ! $features ]] || skipping unitkit fit "$d/train.jsonl" -o "$tokenizer" --features "$features" ${layer:+--layer "$layer"} -k "$units"
    for s in train dev; do skipping unitkit encode "$d/$s.jsonl" -t "$tokenizer" -o "$exp/units/$s.jsonl"; done; }
speaker() { [[ $encoder != own ]] || recipe train_speaker conf/speaker.yaml out="$own" train_manifest="$d/train.jsonl" \
    dev_manifest="$d/dev.jsonl" unseen_manifest="$d/unseen.jsonl"; }
converter() { taught "$exp/units/%s.jsonl"; recipe train_vc "conf/$conf.yaml" out="$exp/converter" ${own:+speaker="$own"} "${keys[@]}" "${overrides[@]}"; }
vocoder() { for s in train dev; do skipping recipe mels "$d/$s.jsonl" -o "$exp/mels/$s" "${how[@]}"; done; vocode "" vocoder "$exp/vocoder"; }
finetune() { for s in train dev; do skipping recipe mels "$d/$s.jsonl" -o "$exp/mels/made.$s" --converter "$exp/converter"; done
    vocode made. finetune "$exp/converter/vocoder" init="$exp/vocoder"; } # on mels that the converter makes of the recordings
convert() { for t in $sets; do recipe conversions "$exp/$t" --sources "$d/sources.jsonl" --references "$d/$t.jsonl" -n "$pairs"
    for s in source reference; do unitkit encode "$exp/$t/$s.jsonl" -t "$tokenizer" -o "$exp/$t/units/${s/source/test}.jsonl" --overwrite; done
    for m in "${ways[@]}"; do exact=(); [[ $m != exact-* ]] || exact=(--exact-pitch)
        skipping unitkit convert "$exp/$t/source.jsonl" "$exp/$t/reference.jsonl" -m "$exp/converter" --tokenizer "$tokenizer" \
            -o "$exp/$t/synth/$m" --mode "${m#exact-}" "${exact[@]}"; done; done; }
score() { for t in $sets; do from=(); [[ " $modes " != *" copy "* ]] || from=(--baseline "$exp/$t/synth/copy")
    unitkit score conversions "${ways[@]/#/$exp/$t/synth/}" "${from[@]}" --source-units "$exp/$t/units/test.jsonl" \
        --reference-units "$exp/$t/units/reference.jsonl" --metrics "$metrics" --recognizer "$recognizer" --split "$t" -o "$exp/$t/scores.jsonl"
    [[ ! $quality ]] || unitkit score "${ways[@]/#/$exp/$t/synth/}" --reference "$exp/$t/source.jsonl" --metrics "$quality" --split "$t" -o "$exp/$t/scores.jsonl"; done; }
report() { for t in $sets; do recipe join "$exp/$t/synth/reference/manifest.jsonl" "$exp/$t/reference.jsonl"
    unitkit report "$exp/$t" --reference "$exp/$t/source.jsonl" -o "$exp/$t/report.html" --title "Conversion into voices ${t/seen/heard in training}"; done; }

run_stages data units speaker converter vocoder finetune convert score report
