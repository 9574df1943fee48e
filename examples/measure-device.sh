#!/bin/sh
# What is most worth knowing of Bayan on a device, within ten minutes: generation and prompts of an 8B model, at depth
# and sampled, the time of each kernel, the op suite, several sequences, LoRA training. The most wanted figures come
# first.
#
#     examples/measure-device.sh WANTED [PROGRAM] [OUT] [SECONDS]
#
# WANTED is a part of the device's name, such as NVIDIA: the script ends at once if no such device is there, and
# measures no other. PROGRAM is the `bayan` to measure (default: beside this script, else built here), OUT a folder for
# everything that is written (default: measurements), SECONDS the time for all sections (default: 540).
#
# To measure on a borrowed machine, bring two files and this script in one folder: `bayan` (cargo build --release
# --package bayan-cli; target/release/bayan) and `libvulkan.so.1` (of your system, e.g. Debian's libvulkan1). The
# machine itself has the device's driver. Nothing is downloaded: weights are random and made while they are loaded.
# Commit the figures that go into docs/performance.md with device and commit; OUT/report.md names both.
set -eu
wanted=${1:?the first argument is a part of the wanted device\'s name, such as NVIDIA}
here=$(cd "$(dirname "$0")" && pwd)
program=${2:-}
out=${3:-measurements}
seconds=${4:-540}
if [ -z "$program" ] && [ -x "$here/bayan" ]; then program=$here/bayan; fi
if [ -z "$program" ]; then
  cargo build --release --package bayan-cli
  program=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/bayan
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
# Tuned kernel shapes and the drivers' caches go into the folder too.
export XDG_CACHE_HOME="$out/cache" LD_LIBRARY_PATH="$here${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
report=$out/report.md
end=$(($(date +%s) + seconds))
failed=0

# section LIMIT TITLE COMMAND…: runs a command for at most LIMIT seconds; its output goes into the report, and a failure
# is counted and not hidden.
section() {
  limit=$1
  title=$2
  shift 2
  left=$((end - $(date +%s)))
  printf '\n## %s\n\n`%s`\n\n' "$title" "$*" >> "$report"
  if [ "$left" -lt 5 ]; then
    printf 'NOT MEASURED: no time was left\n' >> "$report"
    failed=$((failed + 1))
    return 0
  fi
  if [ "$limit" -gt "$left" ]; then limit=$left; fi
  printf '%s (at most %s s)\n' "$title" "$limit" >&2
  started=$(date +%s)
  printf '```\n' >> "$report"
  status=0
  timeout -k 5 "$limit" "$@" >> "$report" 2>&1 || status=$?
  printf '```\n%s s\n' "$(($(date +%s) - started))" >> "$report"
  if [ "$status" -ne 0 ]; then
    failed=$((failed + 1))
    printf 'FAILED with status %s (124: the time was over)\n' "$status" >> "$report"
  fi
}

bench() {
  limit=$1
  title=$2
  shift 2
  section "$limit" "$title" "$program" bench --device "$wanted" "$@"
}

printf '# %s\n' "$("$program" --version)" > "$report"
if ! "$program" devices > "$out/devices.txt" 2>&1 || ! grep -qi -- "$wanted" "$out/devices.txt"; then
  cat "$out/devices.txt" >&2
  printf 'expected a device whose name contains "%s", found the above; install its Vulkan driver\n' "$wanted" >&2
  exit 1
fi
section 20 "Device" "$program" devices
bench 120 "8B q4_k: prompt, generation, kernels" \
  --model random:llama3-8b --quantize q4_k --prompt 512 --generate 128 --repetitions 2 --profile
bench 90 "8B q4_k: sampled at depth, kernels" \
  --model random:llama3-8b --quantize q4_k --prompt 0 --generate 64 --repetitions 1 --depth 4000,16000 --sampled --profile
section 60 "Op suite" "$program" ops --device "$wanted"
bench 60 "8B q4_k: 8 sequences" \
  --model random:llama3-8b --quantize q4_k --prompt 0 --generate 64 --repetitions 2 --depth 0 --parallel 8
bench 60 "8B q4_k: 9 sequences" \
  --model random:llama3-8b --quantize q4_k --prompt 0 --generate 64 --repetitions 2 --depth 0 --parallel 9
bench 60 "8B q4_k: a prompt of 4000" \
  --model random:llama3-8b --quantize q4_k --prompt 4000 --generate 0 --repetitions 1
bench 60 "1B q4_0: prompt, generation, kernels" \
  --model random:llama3.2-1b --quantize q4_0 --prompt 512 --generate 128 --repetitions 2 --profile
bench 60 "1B q8_0: LoRA training" --train --model random:llama3.2-1b --quantize q8_0 --repetitions 2
for format in q4_0 q8_0 f16; do
  bench 60 "8B $format" --model random:llama3-8b --quantize "$format" --prompt 512 --generate 64 --repetitions 1
done
for disable in f16 f16,subgroups f16,subgroups,dot unchecked; do
  section 60 "Op suite without $disable" "$program" ops --device "$wanted" --disable "$disable"
done
printf '%s sections failed or were not measured; everything is in %s\n' "$failed" "$out" >&2
exit $((failed > 0))
