/** What Podman, buildah, containerd and Docker are asked to do; `{word}` is filled in by callers.ts. */
export interface Check {
  readonly name: string;
  readonly command: string;
  /** @default 0 */
  readonly code?: number;
  /** A regular expression, on any line of what it prints. */
  readonly output?: string;
}

const ticker = `sh -c 'while :; do echo tick; sleep 0.2; done'`;
const limits = `sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true'`;

export const podmanChecks: readonly Check[] = [
  { name: "run", command: "{podman} run --rm {o} slipway-test echo hello", output: "^hello$" },
  {
    name: "run without a network",
    command: "{podman} run --rm --network none {o} slipway-test ls /sys/class/net",
    output: "^lo$",
  },
  {
    name: "run on a bridge",
    command: "{podman} run --rm --network podman {o} slipway-test ls /sys/class/net",
    output: "^eth0$",
  },
  { name: "run: exit code of the program", command: "{podman} run --rm {o} slipway-test sh -c 'exit 7'", code: 7 },
  { name: "run: 127 for a missing program", command: "{podman} run --rm {o} slipway-test /nothing", code: 127 },
  { name: "run: 126 for what is no program", command: "{podman} run --rm {o} slipway-test /etc", code: 126 },
  { name: "run: 125 for a wrong option", command: "{podman} run --rm --nothing slipway-test true", code: 125 },
  {
    name: "run with a terminal",
    command: `script -qec "{podman} run --rm -it {o} slipway-test tty" /dev/null`,
    output: "/dev/pts/0",
  },
  {
    name: "run --memory --pids-limit",
    command: `{podman} run --rm --memory 64m --pids-limit 33 --cpus 0.5 {o} slipway-test ${limits}`,
    output: "^67108864\\n33$",
  },
  {
    name: "run --read-only",
    command: "{podman} run --rm --read-only {o} slipway-test sh -c 'echo > /x'",
    code: 2,
    output: "Read-only",
  },
  {
    name: "run --tmpfs",
    command: "{podman} run --rm --read-only --tmpfs /t {o} slipway-test sh -c 'echo > /t/x && ls /t'",
    output: "^x$",
  },
  { name: "run -v", command: "{podman} run --rm -v $D:/d:ro {o} slipway-test ls /d", output: "^rootfs$" },
  {
    name: "run -v of a volume",
    command:
      "{podman} run --rm -v vol:/v {o} slipway-test sh -c 'echo kept > /v/f' && {podman} run --rm -v vol:/v {o} slipway-test cat /v/f",
    output: "^kept$",
  },
  {
    name: "run --init",
    command: "{podman} run --rm --init {o} slipway-test cat /proc/1/comm",
    output: "^podman-init$",
  },
  { name: "run --user", command: "{podman} run --rm --user 12:34 {o} slipway-test id", output: "uid=12.* gid=34" },
  {
    name: "run --cap-drop",
    command: "{podman} run --rm --cap-drop all {o} slipway-test grep CapEff /proc/self/status",
    output: "0000000000000000",
  },
  {
    name: "run --privileged",
    command: "{podman} run --rm --privileged {o} slipway-test sh -c 'mount -t tmpfs x /tmp && echo mounted'",
    output: "^mounted$",
  },
  {
    name: "run --uidmap",
    command: "{podman} run --rm --uidmap 0:100000:65536 {o} slipway-test cat /proc/self/uid_map",
    output: "0 +100000 +65536",
  },
  {
    name: "run --pid host",
    command: "{podman} run --rm --pid host {o} slipway-test sh -c 'test $$ != 1 && echo host'",
    output: "^host$",
  },
  {
    name: "run --sysctl --hostname",
    command:
      "{podman} run --rm --sysctl net.ipv4.ip_default_ttl=99 --hostname h {o} slipway-test sh -c 'cat /proc/sys/net/ipv4/ip_default_ttl; uname -n'",
    output: "^99\\nh$",
  },
  { name: "seccomp", command: "{podman} run --rm {o} slipway-test grep ^Seccomp: /proc/self/status", output: "2$" },
  {
    name: "run --detach",
    command: `{podman} run -d --name d --health-cmd true {o} slipway-test ${ticker}`,
    output: "^[0-9a-f]{64}$",
  },
  { name: "exec", command: "{podman} exec d sh -c 'echo in; exit 5'", code: 5, output: "^in$" },
  { name: "exec -it", command: `script -qec "{podman} exec -it d tty" /dev/null`, output: "/dev/pts/" },
  { name: "exec of what is missing", command: "{podman} exec d /nothing", code: 127 },
  {
    name: "exec --user --env --workdir",
    command: "{podman} exec --user 9 --env A=b --workdir /tmp d sh -c 'id -u; echo $A; pwd'",
    output: "^9$",
  },
  { name: "top", command: "{podman} top d", output: "sleep 0.2" },
  { name: "healthcheck run", command: "{podman} healthcheck run d" },
  { name: "stats", command: "{podman} stats --no-stream --format '{{.PIDS}}' d", output: "^[1-9]" },
  {
    name: "pause",
    command: "{podman} pause d && {podman} ps -a --format '{{.Status}}' --filter name=d",
    output: "Paused|paused",
  },
  { name: "unpause", command: "{podman} unpause d && {podman} exec d echo runs", output: "^runs$" },
  {
    name: "update",
    command:
      "{podman} update --memory 96m d && {podman} exec d sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true'",
    output: "^100663296$",
  },
  { name: "kill", command: "{podman} kill -s USR2 d" },
  { name: "logs", command: "{podman} logs --tail 1 d", output: "^tick$" },
  { name: "cp", command: "{podman} cp $D/slipway d:/copied && {podman} exec d ls /copied", output: "^/copied$" },
  { name: "restart", command: "{podman} restart -t 1 d && {podman} exec d echo again", output: "^again$" },
  {
    name: "stop",
    command: "{podman} stop -t 1 d && {podman} inspect -f '{{.State.ExitCode}} {{.State.Status}}' d",
    output: "^(137|143) exited$",
  },
  {
    name: "commit and run",
    command: "{podman} commit -q d copy && {podman} run --rm {o} copy ls /copied",
    output: "^/copied$",
  },
  { name: "rm", command: "{podman} rm d" },
  {
    name: "pod",
    command:
      "{podman} pod create --name p --infra-image slipway-test --infra-command /usr/bin/sleep,inf && {podman} pod rm -f p",
  },
  { name: "build", command: "{podman} build --isolation oci --network none {o} $D/context", output: "^built$" },
];

/** Without privileges Podman has no limits on cgroup v1, and ids that the user was given. */
const privileged = ["run --memory --pids-limit", "run --uidmap", "stats", "pause", "unpause", "update"];

export const podmanUserChecks: readonly Check[] = [
  ...podmanChecks.filter(({ name }) => !privileged.includes(name)),
  {
    name: "run --uidmap of ids of the user",
    command: "{podman} run --rm --uidmap 0:1:1000 {o} slipway-test cat /proc/self/uid_map",
    output: "^ +0 +1 +1000$",
  },
  {
    name: "run --userns keep-id",
    command: "{podman} run --rm --userns keep-id {o} slipway-test id -u",
    output: "^64279$",
  },
  {
    name: "list of the runtime",
    command:
      "{podman} run -d --name l {o} slipway-test sleep 100 && {podman} unshare $RUNTIME list && {podman} rm -ft 0 l",
    output: "running",
  },
];

export const buildahChecks: readonly Check[] = [
  {
    name: "bud",
    command: "{buildah} bud --runtime $RUNTIME --isolation oci --network none {o} $D/context",
    output: "^built$",
  },
  {
    name: "run",
    command:
      "c=$({buildah} from slipway-test) && {buildah} run --runtime $RUNTIME --isolation oci -v /usr:/usr:ro $c echo in; e=$?; {buildah} rm $c; exit $e",
    output: "^in$",
  },
  {
    name: "run: exit code",
    command:
      "c=$({buildah} from slipway-test) && {buildah} run --runtime $RUNTIME --isolation oci -v /usr:/usr:ro $c sh -c 'exit 3'; e=$?; {buildah} rm $c; exit $e",
    code: 3,
  },
];

export const containerdChecks: readonly Check[] = [
  { name: "run", command: "{ctr} run --rm {o} c echo hello", output: "^hello$" },
  { name: "run: exit code of the program", command: "{ctr} run --rm {o} c sh -c 'exit 7'", code: 7 },
  {
    name: "run of what is missing",
    command: "{ctr} run --rm {o} c /nothing",
    code: 1,
    output: "no such file or directory",
  },
  { name: "run with a terminal", command: `script -qec "{ctr} run --rm -t {o} c tty" /dev/null`, output: "/dev/pts/0" },
  { name: "run --detach", command: `{ctr} run -d {o} c sleep 1000` },
  { name: "task exec", command: "{ctr} task exec --exec-id e c sh -c 'echo in; exit 5'", code: 5, output: "^in$" },
  { name: "task ps", command: "{ctr} task ps c", output: "^[0-9]+ " },
  { name: "task pause", command: "{ctr} task pause c && {ctr} task ls", output: "PAUSED" },
  { name: "task resume", command: "{ctr} task resume c && {ctr} task ls", output: "RUNNING" },
  { name: "task metrics", command: "{ctr} task metrics c", output: "pids.current +1|pids +1" },
  {
    name: "task kill",
    command: "{ctr} task kill -s KILL c; sleep 1; {ctr} task rm c; {ctr} task ls | grep -c RUNNING",
    code: 1,
    output: "^0$",
  },
  { name: "container rm", command: "{ctr} container rm c" },
];

export const dockerChecks: readonly Check[] = [
  { name: "run", command: "{docker} run --rm {o} echo hello", output: "^hello$" },
  { name: "run: network of its own", command: "{docker} run --rm {o} ls /sys/class/net", output: "^eth0$" },
  { name: "run: exit code of the program", command: "{docker} run --rm {o} sh -c 'exit 7'", code: 7 },
  { name: "run: 127 for a missing program", command: "{docker} run --rm {o} /nothing", code: 127 },
  { name: "run: 126 for what is no program", command: "{docker} run --rm {o} /etc", code: 126 },
  {
    name: "run with a terminal",
    command: `script -qec "{docker} run --rm -it {o} tty" /dev/null`,
    output: "/dev/pts/0",
  },
  {
    name: "run --memory --pids-limit",
    command: `{docker} run --rm --memory 64m --pids-limit 33 --cpus 0.5 {o} ${limits}`,
    output: "^67108864\\n33$",
  },
  {
    name: "run --read-only",
    command: "{docker} run --rm --read-only {o} sh -c 'echo > /x'",
    code: 2,
    output: "Read-only",
  },
  { name: "run --init", command: "{docker} run --rm --init {o} cat /proc/1/comm", output: "^(docker-init|tini)$" },
  { name: "run --detach", command: `{docker} run -d --name box {o} ${ticker}`, output: "^[0-9a-f]{64}$" },
  { name: "exec", command: "{docker} exec box sh -c 'echo in; exit 5'", code: 5, output: "^in$" },
  { name: "exec -it", command: `script -qec "{docker} exec -it box tty" /dev/null`, output: "/dev/pts/" },
  { name: "top", command: "{docker} top box", output: "sleep 0.2" },
  { name: "pause", command: "{docker} pause box && {docker} ps --format '{{.Status}}'", output: "Paused" },
  { name: "unpause", command: "{docker} unpause box && {docker} exec box echo runs", output: "^runs$" },
  {
    name: "update",
    command:
      "{docker} update --memory 96m --memory-swap 96m box && {docker} exec box sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true'",
    output: "^100663296$",
  },
  { name: "stats", command: "{docker} stats --no-stream --format '{{.PIDs}}' box", output: "^[1-9]" },
  { name: "logs", command: "{docker} logs --tail 1 box", output: "^tick$" },
  { name: "restart", command: "{docker} restart -t 1 box && {docker} exec box echo again", output: "^again$" },
  {
    name: "stop",
    command: "{docker} stop -t 1 box && {docker} inspect -f '{{.State.ExitCode}}' box",
    output: "^(137|143)$",
  },
  { name: "rm", command: "{docker} rm box" },
];
