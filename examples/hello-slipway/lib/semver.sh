# Semantic versions: MAJOR.MINOR.PATCH, optionally -PRERELEASE and +BUILD.

# The awk functions that everything below shares.
semver_awk='
function valid(v) {
  return v ~ /^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$/
}
function refuse(v) {
  printf "versions: not a semantic version: \"%s\"\n", v > "/dev/stderr"
  failed = 1
  exit 1
}
# -1, 0 or 1. A build suffix never counts; a pre-release comes before its release.
function compare(a, b,    i, n, m, x, y, pa, pb) {
  sub(/\+.*/, "", a); sub(/\+.*/, "", b)
  pa = index(a, "-") ? substr(a, index(a, "-") + 1) : ""
  pb = index(b, "-") ? substr(b, index(b, "-") + 1) : ""
  sub(/-.*/, "", a); sub(/-.*/, "", b)
  split(a, x, "."); split(b, y, ".")
  for (i = 1; i <= 3; i++) if (x[i] + 0 != y[i] + 0) return x[i] + 0 < y[i] + 0 ? -1 : 1
  if (pa == "" || pb == "") return pa == pb ? 0 : pa == "" ? 1 : -1
  n = split(pa, x, "."); m = split(pb, y, ".")
  for (i = 1; i <= n && i <= m; i++) {
    if (x[i] == y[i]) continue
    # Numbers come before words and compare as numbers.
    if (x[i] ~ /^[0-9]+$/ && y[i] ~ /^[0-9]+$/) return x[i] + 0 < y[i] + 0 ? -1 : 1
    if (x[i] ~ /^[0-9]+$/) return -1
    if (y[i] ~ /^[0-9]+$/) return 1
    return x[i] "" < y[i] "" ? -1 : 1
  }
  return n == m ? 0 : n < m ? -1 : 1
}'

semver_compare() {
  awk "$semver_awk"'BEGIN {
    if (!valid(ARGV[1])) refuse(ARGV[1])
    if (!valid(ARGV[2])) refuse(ARGV[2])
    print compare(ARGV[1], ARGV[2])
  }' "$1" "$2"
}

semver_bump() {
  awk "$semver_awk"'BEGIN {
    part = ARGV[1]; version = ARGV[2]
    if (!valid(version)) refuse(version)
    sub(/[-+].*/, "", version)
    split(version, v, ".")
    if (part == "major") printf "%d.0.0\n", v[1] + 1
    else if (part == "minor") printf "%d.%d.0\n", v[1], v[2] + 1
    else if (part == "patch") printf "%d.%d.%d\n", v[1], v[2], v[3] + 1
    else { printf "versions: no such part: \"%s\"\n", part > "/dev/stderr"; exit 2 }
  }' "$1" "$2"
}

semver_sort() {
  awk "$semver_awk"'
    !valid($0) { refuse($0) }
    {
      for (i = NR; i > 1 && compare($0, list[i - 1]) < 0; i--) list[i] = list[i - 1]
      list[i] = $0
    }
    END { if (!failed) for (i = 1; i <= NR; i++) print list[i] }'
}
