#!/bin/sh
# Prints one line per test and fails if one failed.
set -u
cd -- "$(dirname -- "$0")/.." || exit 1
failed=0
count=0

is() {
  count=$((count + 1))
  if [ "$2" = "$3" ]; then
    echo "ok $count - $1"
  else
    echo "not ok $count - $1: wanted '$3', got '$2'"
    failed=$((failed + 1))
  fi
}

is "equal versions" "$(bin/versions compare 1.2.3 1.2.3)" 0
is "numbers, not words" "$(bin/versions compare 1.10.0 1.9.0)" 1
is "a pre-release comes first" "$(bin/versions compare 2.0.0-rc.1 2.0.0)" -1
is "pre-releases by number" "$(bin/versions compare 1.0.0-rc.2 1.0.0-rc.10)" -1
is "a build suffix never counts" "$(bin/versions compare 1.0.0+a 1.0.0+b)" 0
is "bump patch" "$(bin/versions bump patch 1.2.3)" 1.2.4
is "bump minor" "$(bin/versions bump minor 1.2.3-rc.1)" 1.3.0
is "bump major" "$(bin/versions bump major 1.2.3)" 2.0.0
is "refuse nonsense" "$(bin/versions bump major 01.2 2>&1)" 'versions: not a semantic version: "01.2"'

echo "$count tests, $failed failed"
[ "$failed" -eq 0 ]
