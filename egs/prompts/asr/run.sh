#!/usr/bin/env bash
# Speech to text from units and from log-mels, on studio prompts of five languages: K, deduplication, unit BPE, bitrate.
#   ./run.sh                                  one model a system for all five languages; test: real prompts
#   ./run.sh langs=es                         one language alone
#   ./run.sh made=                            from the prompts alone; made="a.jsonl b.jsonl": from these as well
#   ./run.sh copies=0                         from the recordings alone, without copies that are faster, slower, higher, lower
#   ./run.sh train transcribe score table systems=k500 fit.max_steps=9000    one system, any key of recipes/train_asr.py
# A system: logmel, or K of a tokenizer, then -frames (not deduplicated), -bpe (in pieces), or both.
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" reader=prompts corpus=downloads options= langs="en es fr it ru" voices=../voices/data made=voices copies=2 \
    tokenizers="k100=mini-100 k500=mini" features= layer= units= pieces=1000 tests=test beam=10 ctc_weight= longest= data= exp= \
    systems="logmel k100 k100-frames k100-bpe k500 k500-frames k500-bpe" -- "$@"
cd "$home" # paths are relative to the recipe's own folder; other corpora run these stages too, see egs/librispeech/asr
name=${langs// /-}$([[ $made ]] || echo -real)$( ((!copies)) || echo "-copies$copies")
: "${data:=data/$name}" "${exp:=exp/$name}"
[[ $reader != prompts || $options ]] || options=lang=${langs// /,}
several() { [[ $langs == *" "* ]]; }
tokenizer_of() { # system: the tokenizer named for its K, else the one that is fitted here
    local t; for t in $tokenizers; do [[ ${t%%=*} != "${1%%-*}" ]] || { echo "${t#*=}"; return; }; done; echo "$exp/${1%%-*}"; }
books() { for m in $systems; do [[ $m == logmel* ]] || echo "${m%%-*}"; done | sort -u; }

data() { [[ $made != voices ]] || { "$root/egs/prompts/voices/run.sh" prompts made join data="$(realpath -m "$voices")"; made=$voices/made/train.jsonl; }
    skipping recipe prepare "$reader" "$corpus" "$data/real" ${options:+$options}
    local add=() l once=$data/train.jsonl; for l in $langs; do add+=(--lang "$l"); done; ((!copies)) || once=$data/once.jsonl
    recipe join "$once" "$data/real/train.jsonl" $made "${add[@]}"
    ((!copies)) || { skipping recipe copies "$once" -o "$data/copies" -n "$copies"; recipe join "$data/train.jsonl" "$once" "$data/copies/manifest.jsonl"; }
    for s in dev $tests; do recipe join "$data/$s.jsonl" "$data/real/$s.jsonl"; done
    ! several || for s in $tests; do for l in $langs; do recipe join "$data/$s-$l.jsonl" "$data/$s.jsonl" --lang "$l"; done; done; }
tokenizer() { [[ ! $features ]] || skipping unitkit fit "$data/train.jsonl" -o "$exp/k$units" --features "$features" ${layer:+--layer "$layer"} -k "$units"; }
units() { for k in $(books); do for s in train dev $tests; do
    skipping unitkit encode "$data/$s.jsonl" -t "$(tokenizer_of "$k")" -o "$exp/units/$k/$s.jsonl"; done; done; }
train() { local keys u; for m in $systems; do keys=() u=$exp/units/${m%%-*}
    [[ $m == logmel* ]] || keys=(train_units="$u/train.jsonl" dev_units="$u/dev.jsonl" tokenizer="$(tokenizer_of "$m")")
    [[ $m != *-frames* ]] || keys+=(units.reduced=false "model.unit_kernels=[3]")
    [[ $m != *-bpe* ]] || keys+=(units.pieces="$pieces" units.dropout=0.1)
    ! several || keys+=(text.langs=true)
    recipe train_asr "conf/$([[ $m == logmel* ]] && echo logmel || echo units).yaml" out="$exp/$m" \
        train_manifest="$data/train.jsonl" dev_manifest="$data/dev.jsonl" "${keys[@]}" "${overrides[@]}"; done; }
transcribe() { for m in $systems; do for s in $tests; do
    skipping unitkit transcribe "$data/$s.jsonl" -m "$exp/$m" -o "$exp/text/$s/$m.jsonl" --beam "$beam" \
        ${ctc_weight:+--ctc-weight "$ctc_weight"} ${longest:+--longest "$longest"}
    ! several || for l in $langs; do recipe join "$exp/text/$s-$l/$m.jsonl" "$exp/text/$s/$m.jsonl" --lang "$l"; done; done; done; }
score() { local names=($tests); ! several || for s in $tests; do for l in $langs; do names+=("$s-$l"); done; done
    local files; for s in "${names[@]}"; do files=(); for m in $systems; do files+=("$exp/text/$s/$m.jsonl"); done
        unitkit score "${files[@]}" --reference "$data/$s.jsonl" --metrics text_cer,text_wer --split "$s" -o "$exp/scores.jsonl"; done; }
table() { recipe asr_table "$exp" --systems $systems --splits $tests -o "$exp/table.md"; }
report() { local k; k=$(books | tail -n 1); for s in $tests; do # the page shows those units; log-mels have none, and no page
    [[ ! $k ]] || unitkit report "$exp" --reference "$data/$s.jsonl" --units "$exp/units/$k/$s.jsonl" -o "$exp/$s.html" --title "Recognition: ${exp##*/}"; done; }
run_stages data tokenizer units train transcribe score table report
