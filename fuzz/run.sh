#!/usr/bin/env bash
# Builds the fuzz targets and runs each for FUZZ_SECONDS (60), two at a time; or those that
# are named. Needs a stable Rust and a C++ compiler; no nightly, no cargo-fuzz:
#
#   fuzz/run.sh                               # all of them, as CI does
#   FUZZ_SECONDS=3600 fuzz/run.sh ledger      # one for an hour
#
# What it finds by the way is kept in target/fuzz/corpus and used again; what makes a target
# fail is in target/fuzz/artifacts, and is tried again by giving its path to the target.
set -euo pipefail
cd "$(dirname "$0")"

all=(cni_stdin frames ledger spool records annotations flags)
targets=("${@:-${all[@]}}")
seconds="${FUZZ_SECONDS:-60}"
out="$(cd .. && pwd)/target/fuzz"
host="$(rustc -vV | sed -n 's/^host: //p')"

# What cargo-fuzz passes, but for the sanitizer, which is nightly's: this code has no unsafe.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares -Cpanic=abort"
export RUSTFLAGS="${RUSTFLAGS//$'\n'/ }"
cargo build --release --locked --target "$host" --target-dir "$out"

fuzz() {
  local target="$1" corpus="$out/corpus/$1" log="$out/$1.log"
  mkdir -p "$corpus" "$out/artifacts/$target"
  if "$out/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=4096 \
    -artifact_prefix="$out/artifacts/$target/" -print_final_stats=1 "$corpus" "corpus/$target" >"$log" 2>&1
  then
    printf 'fuzz %-12s ok: %s runs\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
  else
    printf 'fuzz %-12s FAILED:\n' "$target"
    grep -vE '^#|^stat::|^NEW_FUNC' "$log" | tail -n 30
    return 1
  fi
}

failed=0
while [ ${#targets[@]} -gt 0 ]; do
  pids=()
  for target in "${targets[@]:0:2}"; do
    fuzz "$target" & pids+=($!)
  done
  targets=("${targets[@]:2}")
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
done
exit "$failed"
