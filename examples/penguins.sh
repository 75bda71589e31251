#!/bin/sh
# The Palmer penguins from the command line alone: train, export, verify, inspect, predict.
#
#   sh examples/penguins.sh [DIR [OPTIONS OF fused-loss demo]]
#
# The file that it leaves takes millimetres and gives grams, the probability of each species, and
# the species by name. It needs `pip install 'fused-loss[demo]'`.
set -eu
out=${1:-penguins}
[ $# -eq 0 ] || shift

# Weights, and held-out birds as rows (held-out.csv) and with their answers (held-out.npz).
fused-loss demo --out "$out" "$@"

printf '["Adelie", "Chinstrap", "Gentoo"]\n' > "$out/species.json"

# PenguinModel scales its own inputs and mass: the unit is only said, not computed.
fused-loss export "$out/birds.onnx" --force \
    --model fused_loss.demo_model:PenguinModel --checkpoint "$out/penguins.safetensors" \
    --example "$out/held-out.npz" --output-names body_mass,species \
    --unit g --softmax --label --class-names "$out/species.json" --report "$out/birds.json"

fused-loss verify "$out/birds.onnx" \
    --model fused_loss.demo_model:PenguinModel --checkpoint "$out/penguins.safetensors" \
    --output-names body_mass,species --verify-data "$out/held-out.npz"

fused-loss inspect "$out/birds.onnx"

fused-loss predict "$out/birds.onnx" "$out/held-out.csv" -o "$out/predictions.csv"
