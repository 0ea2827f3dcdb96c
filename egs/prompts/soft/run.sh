#!/usr/bin/env bash
# Anybody's words in one voice, from discrete units and from soft ones: which keep the words, which lose the speaker?
#   ./run.sh                                      the bundled 100 units, soft units taught by them; target: a studio voice
#   ./run.sh voice=june lang=fr                   another voice of egs/prompts/voices; sources in its language
#   ./run.sh finetune=all exp=exp/all             the speech model learns along with the soft units, as in the paper
#   ./run.sh acoustic synth score fit.max_steps=8000    one stage and what follows; any key of recipes/train_acoustic.py
# Systems: what a vocoder speaks at once, and -mel: by an autoregressive acoustic model to mels, which a vocoder speaks.
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" data=../voices/data exp=exp/mini-100 tokenizer=mini-100 features= layer=2 finetune=frozen \
    voice=allison lang=en pairs=60 systems="discrete soft discrete-mel soft-mel" metrics=wer,cer,speaker,dnsmos recognizer=auto -- "$@"
cd "$home" # paths are relative to the recipe's own folder
: "${features:=$root/unitkit/bundled/mini/encoder}"
d=$exp/data u=$exp/units
vocoder() { keys=() # name, %s for the split: units, folder of features; more keys
    for s in train dev; do keys+=("${s}_manifest=$d/$s.jsonl" "${s}_units=${2/\%s/$s}"); [[ ! $3 ]] || keys+=("data.features_$s=${3/\%s/$s}"); done
    recipe train_vocoder conf/vocoder.yaml out="$exp/$1" "${keys[@]}" "${@:4}"; }

speech() { # {train,dev}: the target voice; pairs of other voices' recordings with one of its own
    "$root/egs/prompts/voices/run.sh" prompts made join data="$(realpath -m "$data")"
    for s in train dev; do recipe join "$d/$s.jsonl" "$data/$s.jsonl" --speaker "$voice"; done
    recipe join "$d/sources.jsonl" "$data/made/test.jsonl" --lang "$lang" --without "$voice"
    recipe conversions "$exp" --sources "$d/sources.jsonl" --references "$d/dev.jsonl" -n "$pairs"; }
units() { for s in train dev; do skipping unitkit encode "$data/$s.jsonl" -t "$tokenizer" -o "$u/$s.jsonl"; done # all voices teach soft units
    skipping unitkit encode "$exp/source.jsonl" -t "$tokenizer" -o "$u/test.jsonl" --overwrite; }
soft() { recipe train_soft conf/soft.yaml out="$exp/tokenizer" features="$features" layer="$layer" finetune="$finetune" \
        train_manifest="$data/train.jsonl" train_units="$u/train.jsonl" dev_manifest="$data/dev.jsonl" dev_units="$u/dev.jsonl"
    for s in train dev; do skipping unitkit encode "$d/$s.jsonl" -t "$exp/tokenizer" -o "$u/$s.soft"; done
    skipping unitkit encode "$exp/source.jsonl" -t "$exp/tokenizer" -o "$u/test.soft"; }
vocoders() { for s in train dev; do skipping recipe mels "$d/$s.jsonl" -o "$exp/mels/$s" --hop 160; done
    vocoder vocoder "$exp/mels/%s/units.jsonl" "$exp/mels/%s" data.names=false # of mels: -mel systems find it beside them
    [[ " $systems " != *" discrete "* ]] || vocoder discrete "$u/%s.jsonl" ""
    [[ " $systems " != *" soft "* ]] || vocoder soft "$u/%s.jsonl" "$u/%s.soft"; }
acoustic() { for m in discrete soft; do [[ " $systems " == *" $m-mel "* ]] || continue
    ext=jsonl; [[ $m == discrete ]] || ext=soft
    recipe train_acoustic conf/acoustic.yaml out="$exp/$m-mel" train_units="$u/train.$ext" train_mels="$exp/mels/train" \
        dev_units="$u/dev.$ext" dev_mels="$exp/mels/dev" "${overrides[@]}"; done; }
synth() { for m in $systems shuffled; do # shuffled: the control of every score
    heard=$u/test.jsonl more=() model=$m; [[ $m != soft* ]] || heard=$u/test.soft
    [[ $m != shuffled ]] || more=(--shuffle 0) model=${systems%% *}
    [[ $model != soft* ]] || heard=$u/test.soft
    unitkit vocode "$heard" -m "$exp/$model" -o "$exp/synth/$m" "${more[@]}"; done; }
score() { local judged=($systems) # against the sources, whose words it should be; against the target, whose voice
    for t in source reference; do some=$metrics; [[ $t == source ]] || some=speaker
        unitkit score "${judged[@]/#/$exp/synth/}" --control "$exp/synth/shuffled" --metrics "$some" --recognizer "$recognizer" --lang "$lang" \
            --split "$t" --reference "$exp/$t.jsonl" -o "$exp/scores.jsonl"; done; }
report() { unitkit report "$exp" --reference "$exp/source.jsonl" -o "$exp/report.html" --title "Discrete and soft units: $voice"; }

run_stages speech units soft vocoders acoustic synth score report
