#!/bin/sh
# Sorting what is already sorted, reversed or shuffled must give the order of semver.org §11.
set -eu
cd -- "$(dirname -- "$0")/.."
wanted='1.0.0-alpha
1.0.0-alpha.1
1.0.0-alpha.beta
1.0.0-beta
1.0.0-beta.2
1.0.0-beta.11
1.0.0-rc.1
1.0.0
1.9.0
1.10.0
2.0.0'

for seed in 1 2 3 4 5; do
  got=$(printf '%s\n' "$wanted" | awk -v seed="$seed" 'BEGIN { srand(seed) } { print rand(), $0 }' | sort -n | cut -d' ' -f2 | bin/versions sort)
  if [ "$got" != "$wanted" ]; then
    printf 'shuffle %s came back as:\n%s\n' "$seed" "$got"
    exit 1
  fi
  echo "shuffle $seed: sorted"
done
