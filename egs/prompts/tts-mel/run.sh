#!/usr/bin/env bash
# Units to mels to speech: the other route from text, beside egs/prompts/tts, whose speech, units and text model it takes.
#   ./run.sh                          run ../tts/run.sh first
#   ./run.sh mel=../vc/exp/mini       mels and their vocoder are those that egs/prompts/vc has made: nothing is learned twice
#   ./run.sh acoustic speak score fit.max_minutes=30     any key of recipes/train_acoustic.py
# Systems: direct and mel, the texts by either route; units and units-mel, the recordings' own units by either.
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" tts=../tts front=characters voices=yes sets="seen unseen" mel= exp=exp \
    metrics=wer,cer,speaker,dnsmos recognizer=auto -- "$@"
cd "$home" # paths are relative to the recipe's own folder; egs/ljspeech/tts-mel runs these stages too, with voices= for one voice
: "${mel:=$exp/mel}"
t=$tts/exp d=$tts/exp/data known=() own=() made=() # own: keys of the vocoder of mels, made: of the model that makes them
[[ ! $voices ]] || known=(--voices "$t/voices/all.safetensors")
for k in train dev; do
    own+=("${k}_manifest=$d/$k.jsonl" "${k}_units=$mel/mels/$k/units.jsonl" "data.features_$k=$mel/mels/$k")
    made+=("${k}_manifest=$d/$k.jsonl" "${k}_units=$t/units/$k.jsonl" "${k}_mels=$mel/mels/$k" ${voices:+"voices_$k=$t/voices/$k.safetensors"}); done
text() { skipping unitkit speak "$d/$1.jsonl" -m "$t/$front" -o "$exp/$1/synth/$2" "${known[@]}" "${@:3}"; }
again() { unitkit vocode "$t/$1/units/test.jsonl" -o "$exp/$1/synth/$2" --like "$d/$1.jsonl" "${known[@]}" "${@:3}"; }

mels() { for s in train dev; do skipping recipe mels "$d/$s.jsonl" -o "$mel/mels/$s"; done; }
vocoder() { [[ $mel != "$exp/mel" ]] || recipe train_vocoder conf/vocoder.yaml out="$mel/vocoder" data.names=false "${own[@]}"; }
acoustic() { recipe train_acoustic conf/acoustic.yaml out="$exp/acoustic" "${made[@]}" "${overrides[@]}"
    [[ ! -d $mel/vocoder ]] || ln -sfn "$(realpath "$mel/vocoder")" "$exp/acoustic/vocoder"; }
speak() { for s in $sets; do text "$s" direct; text "$s" mel --vocoder "$exp/acoustic"
    again "$s" units -m "$t/vocoder"; again "$s" units-mel -m "$exp/acoustic"; again "$s" shuffled -m "$exp/acoustic" --shuffle 0; done; }
score() { for s in $sets; do judged=(direct mel units units-mel)
    unitkit score "${judged[@]/#/$exp/$s/synth/}" --control "$exp/$s/synth/shuffled" --metrics "$metrics" --recognizer "$recognizer" \
        --split "$s" --reference "$d/$s.jsonl" -o "$exp/$s/scores.jsonl"; done; }
report() { for s in $sets; do unitkit report "$exp/$s" --reference "$d/$s.jsonl" --units "$t/$s/units/test.jsonl" -o "$exp/$s/report.html" \
    --title "Two routes from text: $s"; done; }

run_stages mels vocoder acoustic speak score report
