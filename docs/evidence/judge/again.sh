#!/bin/sh
# Everything on this page, in order: sh docs/evidence/judge/again.sh [FOLDER]. About two hours of one core.
# Trainings and drawings that were stopped go on where they were, and answers that are there are not asked for again.
set -eu
out=${1:-out/judge} here=$(dirname "$0")
held=face,table,train,bike # the small judge never saw these, nor robot and boat; its recipe says so
ask() { # LABELS TRUTH NAME OPTIONS: the judge's answers about the held-out objects are kept among the labels, as NAME's
  labels=$1 truth=$2 name=$3
  shift 3
  vsf judge eval "$out/$labels" --truth "$truth" --objects $held --asks missing,kept --keep "$name" "$@"
}

# 1. The judge that comes with vsf on the world's own pictures of objects that it never saw, beside the same recipe run again.
vsf judge train --scratch --out "$out/remade"
vsf judge world 1200 --seed 6 --objects $held --out "$out/world"
ask world world oracle --judge oracle
ask world world shipped --judge tuned --sheet "$here/mistakes.webp"
ask world world shipped-raw --judge tuned --raw
ask world world remade --judge tuned --model "$out/remade/weights"
ask world world remade-raw --judge tuned --model "$out/remade/weights" --raw

# 2. Pictures that two models drew with every method, weak and strong, labelled by the oracle; LoRA on those of eleven objects.
for model in demo demo-flux; do
  vsf bench generate "$out/drawn-$model" --model $model --split all --no-controls --seeds 0 -p none \
    -p vsf-weak=vsf:scale=1 -p vsf=vsf:scale=2 -p vsf-strong=vsf:scale=4 \
    -p norm-weak=vsf:scale=1,offset=0,normalize=1 -p norm=vsf:scale=2,offset=0,normalize=1 \
    -p upstream-weak=vsf:scale=2,offset=0.2,layout=upstream -p upstream=vsf:scale=3.8,offset=0.2,layout=upstream \
    -p nag-weak=nag:scale=1.5,tau=1.5,alpha=0.5 -p nag=nag:scale=3,tau=2.5,alpha=0.5 \
    -p nasa-weak=nasa:scale=0.2 -p nasa=nasa:scale=0.4
  vsf bench judge "$out/drawn-$model" --judge oracle
  vsf bench export "$out/drawn-$model" --judge oracle --out "$out/shift"
done
shipped=$(python -c 'from vsf.bench.judges.tuned import shipped; print(shipped())')
vsf judge train --base "$shipped" --data "$out/shift" --annotator oracle --asks missing,kept --recipe shift --out "$out/lora"

# 3. Before and after on drawn pictures of the held-out objects, and what the tuning did to the world's own.
ask shift oracle shipped --judge tuned
ask shift oracle shipped-raw --judge tuned --raw
for labels in shift world; do
  [ $labels = world ] && truth=world || truth=oracle
  ask $labels $truth lora --judge tuned --model "$out/lora/adapter"
done
ask shift oracle lora-raw --judge tuned --model "$out/lora/adapter" --raw
for asks in missing kept; do
  vsf judge eval "$out/shift" --truth oracle --objects $held --asks $asks --out "$here/shift-$asks.json" \
    -a shipped-raw -a shipped -a lora-raw -a lora
  vsf judge eval "$out/world" --truth world --objects $held --asks $asks --out "$here/world-$asks.json" \
    -a shipped-raw -a shipped -a remade-raw -a remade -a lora -a oracle
done

# 4. The benchmark under three judges: the held-out objects' cases, other noises. The judges' errors are those of part 3.
python - "$out/cases.jsonl" $held <<'EOF'
import sys
from dataclasses import replace
from vsf.bench.cases import load_cases, save_cases
cases = load_cases("demo")
save_cases(replace(cases, name="held-out", cases=tuple(c for c in cases if c.object in sys.argv[2].split(","))), sys.argv[1])
EOF
vsf bench generate "$out/run" --cases "$out/cases.jsonl" --split all --no-controls --seeds 1-2 \
  -p none -p vsf=vsf:scale=2 -p norm=vsf:scale=2,offset=0,normalize=1 -p upstream=vsf:scale=3.8,offset=0.2,layout=upstream \
  -p nag:scale=3,tau=2.5,alpha=0.5 -p nasa:scale=0.4
vsf bench judge "$out/run" --judge oracle
vsf bench judge "$out/run" --judge tuned --name shipped
vsf bench judge "$out/run" --judge tuned --model "$out/lora/adapter" --name lora
vsf judge ranks "$out/run" --judge oracle --judge shipped --judge lora --labels "$out/shift" --truth oracle --out "$here/ranks.json"
