#!/usr/bin/env bash
# Speech of many voices: the prompts of five languages, and sentences of our own said by a neural synthesiser's voices in
# four of them. Makes data/{train,dev,test}.jsonl for other recipes (egs/prompts/pretrain) and the phone times of the test.
#   ./run.sh                    three hours of made speech: about 70 minutes of one core
#   ./run.sh made hours=10
# test: three English voices that are in no other split, saying sentences that are in no other split.
source "$(dirname "$0")/../../../tools/stages.sh"
variables corpus=downloads hours=3 data=data -- "$@"
((${#overrides[@]} == 0)) || die "no variable '${overrides[0]%%=*}'; the variables are: ${declared[*]}"
cd "$(dirname "$0")" # paths are relative to the recipe's own folder

prompts() { skipping recipe prepare prompts "$corpus" "$data/prompts" lang=en,es,fr,it,ru; }
made() { recipe manufacture "$data/made" --hours "$hours" --forbid "$data/prompts/test.jsonl" --cache "$corpus/kokoro"; }
join() {
    for s in train dev; do recipe join "$data/$s.jsonl" "$data/prompts/$s.jsonl" "$data/made/$s.jsonl"; done
    recipe join "$data/some.jsonl" "$data/train.jsonl" --every 4 # what units are fitted to
    recipe join "$data/test.jsonl" "$data/made/test.jsonl" --lang en
}
phones() { recipe align_prompts "$data/test.jsonl" "$data/test.phones.tsv"; }

run_stages prompts made join phones
