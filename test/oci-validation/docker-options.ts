/** Docker's options, one check or more each; as caller-checks.ts has them. Linux's answer, not Docker's, is looked at. */
import type { Check } from "./caller-checks.ts";

/** A script for `sh -c`, in double quotes of the outer shell's: no `"` and no `$` that is not meant for that. */
const sh = (script: string) => `sh -c "${script}"`;
const v1 = (file: string, v2: string) => sh(`cat /sys/fs/cgroup/${file} /sys/fs/cgroup/${v2} 2>/dev/null; true`);

function run(option: string, program: string, expected: string | Omit<Check, "name" | "command"> = ""): Check {
  const wanted = typeof expected === "string" ? { output: expected } : expected;
  return {
    name: `run ${option.replaceAll("$D", "DIR")}`,
    command: `{docker} run --rm ${option} {o} ${program}`,
    ...wanted,
  };
}

/** Has a container `box` for the time of a command. */
function withBox(name: string, option: string, command: string, expected: Omit<Check, "name" | "command"> = {}): Check {
  const before = `{docker} run -d --name box ${option} {o} sleep 1000`;
  return { name, command: `${before} && ( ${command} ); e=$?; {docker} rm -f box; exit $e`, ...expected };
}

const process: readonly Check[] = [
  run("-u 12:34 --group-add 56", "id", "^uid=12 gid=34 groups=34,56$"),
  run("-u 12 -w /made/here", "pwd", "^/made/here$"),
  run("-e A=b --env-file $D/env", sh("echo \\$A \\$FROM_FILE"), "^b file$"),
  run("--entrypoint /bin/echo", "said", "^said$"),
  { name: "run -i", command: "echo typed | {docker} run --rm -i {o} cat", output: "^typed$" },
  {
    name: "run -it: size of the terminal",
    command: `script -qec "stty rows 33 cols 77; {docker} run --rm -it {o} sh -c 'sleep 0.5; stty size'" /dev/null`,
    output: "33 77",
  },
  {
    name: "run -it: what is typed",
    command: `(sleep 2; echo 'exit 9') | script -qec "{docker} run --rm -it {o} sh" /dev/null`,
    code: 9,
  },
  run("--init -u 7", sh("cat /proc/1/comm; id -u"), "^(docker-init|tini)$"),
  run("--ulimit nofile=11:22 --ulimit stack=4194304", sh("ulimit -Sn; ulimit -Hn; ulimit -s"), "^11\n22\n4096$"),
  run("--oom-score-adj 321", "cat /proc/self/oom_score_adj", "^321$"),
  run("--hostname a --domainname b.c", sh("uname -n; cat /proc/sys/kernel/domainname"), "^a\\nb.c$"),
  run("--uts host", sh("test \\$(readlink /proc/self/ns/uts) = $(readlink /proc/self/ns/uts)")),
  run("--sysctl net.ipv4.ip_default_ttl=99 --sysctl kernel.msgmax=9000", "cat /proc/sys/kernel/msgmax", "^9000$"),
  run("--network none --sysctl net.ipv4.ip_default_ttl=99", "cat /proc/sys/net/ipv4/ip_default_ttl", "^99$"),
];

const rights: readonly Check[] = [
  run("--cap-drop all --cap-add kill", "grep CapEff /proc/self/status", "0000000000000020$"),
  run("--cap-drop mknod", "grep CapEff /proc/self/status", "00000000a00425fb|00000000a80425fb$"),
  run("--cap-add sys_admin", sh("mount -t tmpfs x /tmp && echo mounted"), {}),
  run("--cap-add sys_admin -u 5", "grep CapEff /proc/self/status", "0000000000000000$"),
  run(
    "--privileged",
    sh("mount -t tmpfs x /tmp && test -w /proc/sys/kernel/printk_ratelimit && test -e /dev/net/tun && echo all"),
    "^all$",
  ),
  run("--security-opt seccomp=unconfined", "grep ^Seccomp: /proc/self/status", "0$"),
  run("--security-opt seccomp=$D/seccomp.json", sh("mkdir /tmp/x"), {
    code: 1,
    output: "File name too long|File table overflow|too many",
  }),
  run("--security-opt no-new-privileges", "grep NoNewPrivs /proc/self/status", "1$"),
  run("--security-opt apparmor=unconfined", "true"),
  run("--security-opt label=disable", "true"),
  run("--security-opt systempaths=unconfined", sh("grep -c ' /proc/' /proc/self/mountinfo"), {
    code: 1,
    output: "^0$",
  }),
  run(
    "--read-only --tmpfs /t:size=64k,mode=700,exec",
    sh("stat -c %a /t; grep ' /t ' /proc/mounts"),
    "^700\\n.*size=64k",
  ),
  run("--device /dev/fuse:/dev/nothing:r", sh("exec 3< /dev/nothing && echo read; echo > /dev/nothing"), {
    code: 2,
    output: "^read$",
  }),
  run("--device /dev/fuse", "test -c /dev/fuse"),
  run("--device-cgroup-rule 'c 10:229 rwm' --cap-add mknod", sh("mknod /f c 10 229 && head -c 0 /f")),
  run("", sh("mknod /f c 1 1 && head -c 1 /f"), { code: 1, output: "not permitted" }),
  run("--userns host", "cat /proc/self/uid_map", "0 +0 +4294967295"),
];

const fileSystems: readonly Check[] = [
  run("-v $D/shared:/d", sh("echo written > /d/file && cat /d/file"), "^written$"),
  run("-v $D/shared:/d:ro", sh("echo > /d/file"), { code: 2, output: "Read-only" }),
  run("-v $D/shared:/d:z", "ls /d", ""),
  run("-v $D/shared:/d:Z", "ls /d", ""),
  {
    name: "run -v of a file that is missing: a directory",
    command: "{docker} run --rm -v $D/missing/one:/d {o} test -d /d && test -d $D/missing/one",
  },
  ...(["shared", "slave", "private", "rshared", "rslave", "rprivate"] as const).map((propagation): Check => {
    const seen = propagation.endsWith("private") ? { code: 1, output: "^0$" } : { output: "^1$" };
    return withBox(
      `run -v ${propagation}`,
      `-v $D/shared:/d:${propagation}`,
      "mkdir -p $D/shared/late && mount -t tmpfs late $D/shared/late; {docker} exec box grep -c ' /d/late ' /proc/self/mountinfo; e=$?; umount $D/shared/late; exit $e",
      seen,
    );
  }),
  {
    name: "run -v shared: what is mounted inside is seen outside",
    command:
      "{docker} run --rm --privileged -v $D/shared:/d:shared {o} sh -c 'mkdir -p /d/in && mount -t tmpfs in /d/in' && grep -c shared/in /proc/self/mountinfo; e=$?; umount $D/shared/in; exit $e",
    output: "^1$",
  },
  run("--mount type=bind,src=$D/shared,dst=/d,readonly", sh("echo > /d/file"), { code: 2, output: "Read-only" }),
  run(
    "--mount type=bind,src=$D/shared,dst=/d,bind-propagation=rslave",
    sh("grep ' /d ' /proc/self/mountinfo"),
    "master:",
  ),
  run("--mount type=bind,src=/sys,dst=/d,bind-nonrecursive", sh("ls /d/fs/cgroup | wc -l"), "^0$"),
  run(
    "--mount type=tmpfs,dst=/t,tmpfs-size=65536,tmpfs-mode=1700",
    sh("stat -c %a /t; grep ' /t ' /proc/mounts"),
    "^1700\\n.*size=64k",
  ),
  run("--mount type=volume,src=vol2,dst=/v", sh("echo kept > /v/f")),
  run("--mount type=volume,src=vol2,dst=/v,readonly", sh("cat /v/f; echo > /v/f"), { code: 2, output: "^kept$" }),
  run("-v /v", sh("grep -c ' /v ' /proc/self/mountinfo"), "^1$"),
  {
    name: "run --volumes-from",
    command:
      "{docker} create --name from -v vol2:/v {o} true && {docker} run --rm --volumes-from from {o} cat /v/f; e=$?; {docker} rm from; exit $e",
    output: "^kept$",
  },
  run("--shm-size 1m", "df -k --output=size /dev/shm", "1024"),
  run("-v $D/shared:/dev/shm", "ls /dev/shm"),
  run("-v /dev:/dev", "test -e /dev/kmsg"),
  run("-v $D/file:/etc/resolv.conf:ro", "cat /etc/resolv.conf", "^content$"),
  run("-v $D/file:/etc/made/deep/down", "cat /etc/made/deep/down", "^content$"),
  run("-v $D/link:/d", "cat /d", "^content$"),
];

const limits: readonly Check[] = [
  run(
    "--memory 64m --memory-swap 128m",
    v1("memory/memory.memsw.limit_in_bytes", "memory.swap.max"),
    "^(134217728|67108864)$",
  ),
  run(
    "--memory 64m --memory-swap -1",
    v1("memory/memory.memsw.limit_in_bytes", "memory.swap.max"),
    "^(922337\\d+|max)$",
  ),
  run("--memory 64m --memory-reservation 32m", v1("memory/memory.soft_limit_in_bytes", "memory.low"), "^33554432$"),
  run("--memory-swappiness 7", v1("memory/memory.swappiness", "none"), {}),
  run("--memory 64m --oom-kill-disable", v1("memory/memory.oom_control", "none"), {}),
  // Kernels from 5.16 on do not limit it, and who asks for it is told.
  run("--kernel-memory 32m --memory 64m", "true", { code: 125, output: "memory.kernel is not supported" }),
  run("--cpus 0.25", v1("cpu/cpu.cfs_quota_us", "cpu.max"), "^25000"),
  run("--cpu-period 50000 --cpu-quota 20000", v1("cpu/cpu.cfs_quota_us", "cpu.max"), "^20000"),
  run("--cpu-shares 300", v1("cpu/cpu.shares", "cpu.weight"), "^(300|12|46)$"),
  run("--cpuset-cpus 1 --cpuset-mems 0", "grep Cpus_allowed_list /proc/self/status", "1$"),
  run("--pids-limit 20", sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21; do sleep 1 & done"), {
    code: 2,
    output: "[Cc]annot fork",
  }),
  run("--pids-limit -1", v1("pids/pids.max", "pids.max"), "^max$"),
  run("--blkio-weight 300", v1("blkio/blkio.bfq.weight", "io.bfq.weight"), ""),
  run("--device-read-bps {disk}:1mb", v1("blkio/blkio.throttle.read_bps_device", "io.max"), "1048576"),
  run("--device-write-iops {disk}:50", v1("blkio/blkio.throttle.write_iops_device", "io.max"), "50"),
  run("--cgroup-parent /slipway-test-parent", "cat /proc/self/cgroup", "slipway-test-parent|:/$"),
  run("--cgroupns host", "cat /proc/self/cgroup", "/docker/[0-9a-f]{64}"),
  run("--cgroupns private", "cat /proc/self/cgroup", ":/$"),
];

const namespaces: readonly Check[] = [
  run("--ipc host", sh("test \\$(readlink /proc/self/ns/ipc) = $(readlink /proc/self/ns/ipc)")),
  run("--ipc none", sh("ls /dev/shm"), { code: 2 }),
  run("--ipc private", "test -d /dev/shm"),
  run("--pid host", sh("test \\$(readlink /proc/self/ns/pid) = $(readlink /proc/self/ns/pid)")),
  run("--network host", sh("test \\$(readlink /proc/self/ns/net) = $(readlink /proc/self/ns/net)")),
  run("--network none", "ls /sys/class/net", "^lo$"),
  run("--network none --add-host some:1.2.3.4 --dns 9.9.9.9", "cat /etc/hosts", "1.2.3.4\\s+some"),
  ...["ipc", "pid", "network"].map(
    (kind): Check =>
      withBox(
        `run --${kind} container:`,
        kind === "ipc" ? "--ipc shareable" : "",
        `{docker} run --rm --${kind} container:box {o} readlink /proc/self/ns/${kind.slice(0, 3)} && {docker} exec box readlink /proc/self/ns/${kind.slice(0, 3)}`,
        { output: "^(\\S+)\\n\\1$" },
      ),
  ),
];

const life: readonly Check[] = [
  withBox("exec -u -w -e", "", "{docker} exec -u 9:8 -w /tmp -e A=b box sh -c 'id; pwd; echo $A'", {
    output: "^uid=9 gid=8.*\\n/tmp\\nb$",
  }),
  withBox("exec --privileged", "", "{docker} exec --privileged box grep CapEff /proc/self/status", {
    output: "[13]ffeffffff$|[13]f{10}$",
  }),
  withBox("exec -d", "", "{docker} exec -d box sh -c 'echo here > /made'; sleep 1; {docker} exec box cat /made", {
    output: "^here$",
  }),
  withBox("exec -i", "", "echo typed | {docker} exec -i box cat", { output: "^typed$" }),
  // 126, not 127, is this Docker's answer under every runtime.
  withBox("exec of what is missing", "", "{docker} exec box /nothing", { code: 126, output: "no such file" }),
  withBox("exec of what is no program", "", "{docker} exec box /etc", { code: 126 }),
  withBox("exec in a directory that is missing", "", "{docker} exec -w /nothing box true", { code: 126 }),
  withBox(
    "exec under no-new-privileges and limits",
    "--security-opt no-new-privileges --pids-limit 30",
    "{docker} exec box grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status",
    {
      output: "NoNewPrivs:\\s1\\nSeccomp:\\s2",
    },
  ),
  withBox("exec while paused", "", "{docker} pause box; {docker} exec box true; e=$?; {docker} unpause box; exit $e", {
    code: 1,
    output: "paused",
  }),
  withBox(
    "stop while paused",
    "",
    "{docker} pause box; {docker} stop -t 1 box && {docker} inspect -f '{{.State.Status}}' box",
    { output: "^exited$" },
  ),
  withBox("kill -s", "", "{docker} kill -s KILL box; {docker} wait box", { output: "^137$" }),
  withBox("wait", "", "{docker} stop -t 1 box & {docker} wait box; wait", { output: "^137$" }),
  withBox(
    "update: cpus and pids",
    "",
    `{docker} update --cpus 0.5 --pids-limit 44 --cpu-shares 512 --cpuset-cpus 0 box && {docker} exec box ${v1("pids/pids.max", "pids.max")} && {docker} exec box ${v1("cpu/cpu.cfs_quota_us", "cpu.max")}`,
    {
      output: "^44\\n50000",
    },
  ),
  withBox(
    "update --restart",
    "",
    "{docker} update --restart always box && {docker} exec box kill -9 -1; sleep 2; {docker} inspect -f '{{.HostConfig.RestartPolicy.Name}}' box",
    { output: "^always$" },
  ),
  withBox("top with columns", "", "{docker} top box -o pid,args", { output: "sleep 1000" }),
  withBox("inspect: the process", "", "test $(cat /proc/$({docker} inspect -f '{{.State.Pid}}' box)/comm) = sleep"),
  withBox(
    "cp in and out",
    "",
    "{docker} cp $D/file box:/in && {docker} exec box cp /in /out && {docker} cp box:/out $D/out && cat $D/out",
    { output: "^content$" },
  ),
  withBox("diff", "", "{docker} exec box touch /made && {docker} diff box", { output: "^A /made$" }),
  withBox(
    "commit",
    "",
    "{docker} exec box touch /made && {docker} commit box copied && {docker} run --rm -v /usr:/usr:ro copied ls /made",
    { output: "^/made$" },
  ),
  withBox("export", "", "{docker} export box | tar t | grep -c ^etc/hostname", { output: "^1$" }),
  withBox(
    "healthcheck",
    "--health-cmd true --health-interval 1s",
    "sleep 4; {docker} inspect -f '{{.State.Health.Status}}' box",
    { output: "^healthy$" },
  ),
  withBox(
    "healthcheck that fails",
    "--health-cmd false --health-interval 1s --health-retries 1",
    "sleep 4; {docker} inspect -f '{{.State.Health.Status}}' box",
    { output: "^unhealthy$" },
  ),
  withBox(
    "rename, port, logs -f",
    "-p 127.0.0.1:0:80",
    "{docker} port box 80 && {docker} rename box other && {docker} rename other box",
    { output: "^127.0.0.1:" },
  ),
  {
    name: "run --stop-signal",
    command: `{docker} run -d --name box --stop-signal USR1 {o} sh -c 'trap "exit 5" USR1; while :; do sleep 0.1; done'; sleep 1; {docker} stop -t 20 box; {docker} inspect -f '{{.State.ExitCode}}' box; {docker} rm -f box`,
    output: "^5$",
  },
  {
    name: "run --restart on-failure",
    command: `{docker} run -d --name box --restart on-failure:2 {o} sh -c 'exit 3'; until {docker} inspect -f '{{.State.Status}} {{.RestartCount}}' box | grep 'exited 2'; do sleep 0.2; done; {docker} inspect -f '{{.RestartCount}} {{.State.ExitCode}}' box; {docker} rm -f box`,
    output: "^2 3$",
  },
  {
    name: "run: out of memory",
    command: `{docker} run --name box --memory 16m {o} sh -c 'tail /dev/zero'; {docker} inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' box; {docker} rm -f box`,
    output: "^true 137$",
  },
  {
    name: "create, start -a, start again",
    command:
      "{docker} create --name box {o} echo once && {docker} start -a box && {docker} start -a box; {docker} rm -f box",
    output: "^once\\nonce$",
  },
  {
    name: "attach",
    command: `{docker} run -d -i --name box {o} cat && (echo typed; sleep 1) | {docker} attach --no-stdin=false --sig-proxy=false box & sleep 4; {docker} logs box; {docker} rm -f box`,
    output: "^typed$",
  },
  { name: "build", command: "DOCKER_BUILDKIT=0 {docker} build --network none -t built $D/static", output: "^RUN RAN$" },
  {
    name: "twenty at once",
    command:
      "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do {docker} run --rm {o} echo number $i & done | sort | uniq | grep -c ^number",
    output: "^20$",
  },
];

/** All of them; `{disk}` is a disk of the host. */
export const dockerOptionChecks: readonly Check[] = [
  ...process,
  ...rights,
  ...fileSystems,
  ...limits,
  ...namespaces,
  ...life,
];

/** Of a daemon with --userns-remap. */
export const dockerUserChecks: readonly Check[] = [
  run("", "cat /proc/self/uid_map", "0 +100000 +65536"),
  run("-v $D/rootfs:/d", sh("echo > /d/file"), { code: 2, output: "ermission" }),
  run("-u 5", sh("id -u; echo made > /tmp/x; ls /sys/class/net"), "^5$"),
  run("--read-only --tmpfs /t", sh("echo in > /t/x; cat /t/x; stat -c %u /t"), "^in\\n0$"),
  run("--memory 64m --pids-limit 33", v1("pids/pids.max", "pids.max"), "^33$"),
  run("--network none --sysctl net.ipv4.ip_default_ttl=99", "cat /proc/sys/net/ipv4/ip_default_ttl", "^99$"),
  run("-v vol3:/v", sh("echo kept > /v/f && stat -c %u /v/f"), "^0$"),
  run("--privileged --userns host", "cat /proc/self/uid_map", "0 +0 +4294967295"),
  run("--device /dev/fuse", "test -c /dev/fuse"),
  { name: "run -it", command: `script -qec "{docker} run --rm -it {o} tty" /dev/null`, output: "/dev/pts/0" },
  run("--init", "cat /proc/1/comm", "^(docker-init|tini)$"),
  withBox("exec", "", "{docker} exec box sh -c 'id -u; cat /proc/self/uid_map'", {
    output: "^0\\n +0 +100000 +65536$",
  }),
  withBox("exec -it", "", `script -qec "{docker} exec -it box tty" /dev/null`, { output: "/dev/pts/" }),
  withBox("cp", "", "{docker} cp $D/file box:/in && {docker} exec box cat /in", { output: "^content$" }),
  withBox(
    "pause, unpause, update",
    "",
    "{docker} pause box && {docker} unpause box && {docker} update --pids-limit 44 box",
  ),
  { name: "build", command: "DOCKER_BUILDKIT=0 {docker} build --network none -t built $D/static", output: "^RUN RAN$" },
];

/** Of a daemon with --live-restore: containers go on without it. */
export const dockerLiveRestoreChecks: readonly Check[] = [
  { name: "run --detach", command: "{docker} run -d --name box {o} sh -c 'while :; do echo tick; sleep 0.2; done'" },
  {
    name: "the daemon goes and another one comes",
    command:
      "kill $(cat /run/docker-test.pid); while [ -e /run/docker-test.pid ]; do sleep 0.2; done; ({dockerd} > /dev/null 2>&1 &); for i in $(seq 120); do {docker} version > /dev/null 2>&1 && break; sleep 0.5; done; {docker} ps --format '{{.Status}}'",
    output: "^Up ",
  },
  { name: "exec", command: "{docker} exec box echo in", output: "^in$" },
  { name: "logs", command: "{docker} logs --tail 1 box", output: "^tick$" },
  { name: "pause, unpause", command: "{docker} pause box && {docker} unpause box" },
  { name: "stop", command: "{docker} stop -t 1 box && {docker} inspect -f '{{.State.ExitCode}}' box", output: "^137$" },
  { name: "rm", command: "{docker} rm box" },
  {
    name: "the second daemon goes",
    command: "kill $(cat /run/docker-test.pid); while [ -e /run/docker-test.pid ]; do sleep 0.2; done",
  },
];
