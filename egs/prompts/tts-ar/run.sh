#!/usr/bin/env bash
# Text to units one after another, then to speech, in one language; beside egs/prompts/tts, whose speech and voices it takes.
#   ./run.sh                    English; run ../tts/run.sh first
#   ./run.sh lang=es units=500
#   ./run.sh train speak score report fit.max_minutes=30     any key of recipes/train_s2ut.py
#   ./run.sh beside=tts         compared with the bundled voice in place of ../tts/exp/characters
# Systems: t2u; parallel, the model of ../tts; units of the recordings, reduced; other, t2u in a voice that is not theirs.
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" tts=../tts beside= lang=en units=200 sets="seen unseen" beam=5 other=af_heart \
    metrics=wer,cer,speaker,dnsmos recognizer=auto exp= -- "$@"
cd "$home" # paths are relative to the recipe's own folder
: "${exp:=exp/$lang}" "${beside:=$tts/exp/characters}"
v=$tts/exp/voices d=$exp/data wave=() text=() # units of one codebook, by the encoder of ../tts; durations are the vocoder's
for k in train dev; do wave+=("${k}_manifest=$d/$k.jsonl" "${k}_units=$exp/units/$k.jsonl" "data.voices_$k=$v/$k.safetensors")
    text+=("${k}_"{source,target}"=$d/$k.jsonl" "${k}_units=$exp/units/$k.jsonl"); done
say() { skipping unitkit speak "$d/$1.jsonl" -m "$2" -o "$exp/$1/$3" --voices "$v/all.safetensors" "${@:4}"; }
again() { unitkit vocode "$exp/$1/units/test.jsonl" -m "$exp/vocoder" -o "$exp/$1/synth/$2" --like "$d/$1.jsonl" --voices "$v/all.safetensors" "${@:3}"; }

data() { for s in train dev $sets; do recipe join "$d/$s.jsonl" "$tts/exp/data/$s.jsonl" --lang "$lang"; done; }
units() { skipping unitkit fit "$d/train.jsonl" -o "$exp/tokenizer" --encoder-of "$tts/exp/tokenizer" -k "$units"
    for s in train dev; do skipping unitkit encode "$d/$s.jsonl" -t "$exp/tokenizer" -o "$exp/units/$s.jsonl"; done
    for s in $sets; do skipping unitkit encode "$d/$s.jsonl" -t "$exp/tokenizer" -o "$exp/$s/units/test.jsonl"; done; }
vocoder() { recipe train_vocoder "$tts/conf/vocoder.yaml" out="$exp/vocoder" "${wave[@]}"; }
train() { recipe train_s2ut conf/t2u.yaml out="$exp/t2u" "${text[@]}" "${overrides[@]}"; }
speak() { for s in $sets; do o=$exp/$s/synth
    say "$s" "$exp/t2u" synth/t2u --beam "$beam"; say "$s" "$exp/t2u" synth/other --beam "$beam" --speaker "$other"; say "$s" "$beside" parallel
    recipe join "$o/parallel/manifest.jsonl" "$exp/$s/parallel/manifest.jsonl" # with units of this tokenizer, for its own are of another
    unitkit encode "$o/parallel/manifest.jsonl" -t "$exp/tokenizer" -o "$o/parallel/units.jsonl" --overwrite
    again "$s" units --durations predicted; again "$s" shuffled --shuffle 0; done; }
score() { for s in $sets; do judged=(t2u parallel units other)
    unitkit score "${judged[@]/#/$exp/$s/synth/}" --control "$exp/$s/synth/shuffled" --metrics "$metrics" --recognizer "$recognizer" \
        --lang "$lang" --split "$s" --reference "$d/$s.jsonl" -o "$exp/$s/scores.jsonl"; done; }
report() { for s in $sets; do unitkit report "$exp/$s" --reference "$d/$s.jsonl" -o "$exp/$s/report.html" --title "Unit by unit: $s"; done; }

run_stages data units vocoder train speak score report
