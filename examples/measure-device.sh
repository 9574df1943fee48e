#!/bin/sh
# Everything that is worth knowing of Bayan on a device, in one run: the op suite with each set of features, speed of prompts and of generation on
# shapes from 110 million to 8 billion parameters with random weights, several sequences at a time, and LoRA training.
#
#     examples/measure-device.sh [PROGRAM] [OUT] [SHAPES]
#
# PROGRAM is the `bayan` to measure (default: built here), OUT a folder for the report (default: measurements), SHAPES a list such as
# "llama-110m llama3-8b". Nothing is downloaded. Commit OUT/report.md with the figures that go into docs/performance.md.
set -eu
program=${1:-}
out=${2:-measurements}
shapes=${3:-"llama-110m qwen2.5-0.5b qwen3-1.7b llama3-8b"}
if [ -z "$program" ]; then
  cargo build --release --package bayan-cli
  program=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/bayan
fi
mkdir -p "$out"
report=$out/report.md
failed=0

# Runs a command under a heading; its output goes into the report, and a failure is counted and not hidden.
section() {
  title=$1
  shift
  printf '\n## %s\n\n`%s`\n\n```\n' "$title" "$*" >> "$report"
  printf '%s\n' "$title" >&2
  if ! "$@" >> "$report" 2>> "$report"; then
    failed=$((failed + 1))
    printf 'FAILED\n' >> "$report"
  fi
  printf '```\n' >> "$report"
}

printf '# %s\n' "$("$program" --version)" > "$report"
section "Device" "$program" devices
for disable in "" f16 f16,subgroups f16,subgroups,dot unchecked; do
  section "Op suite without: ${disable:-nothing}" "$program" ops --disable "$disable"
done
for shape in $shapes; do
  for format in q4_0 q4_k q8_0; do
    section "$shape, $format" "$program" bench --model "random:$shape" --quantize "$format" --prompt 512 --generate 128 --repetitions 3
  done
  section "$shape, q4_0, kernels" "$program" bench --model "random:$shape" --quantize q4_0 --prompt 512 --generate 32 --repetitions 1 --profile
  section "$shape, q4_0, 8 sequences" "$program" bench --model "random:$shape" --quantize q4_0 --prompt 0 --generate 64 --repetitions 3 --parallel 8
  section "$shape, q4_0, after 4000 positions" "$program" bench --model "random:$shape" --quantize q4_0 --prompt 4000 --generate 0 --repetitions 1
  for format in q8_0 q4_0; do
    section "$shape, $format, LoRA training" "$program" bench --train --model "random:$shape" --quantize "$format"
  done
done
printf '%s sections failed; the report is %s\n' "$failed" "$report" >&2
exit $((failed > 0))
