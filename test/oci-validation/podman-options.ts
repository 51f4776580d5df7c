/** Podman's options where they differ from Docker's: pods, user namespaces, kube play, what goes to the runtime itself. */
import type { Check } from "./caller-checks.ts";

function run(option: string, program: string, expected: string | Omit<Check, "name" | "command"> = ""): Check {
  const wanted = typeof expected === "string" ? { output: expected } : expected;
  return {
    name: `run ${option.replaceAll("$D", "DIR")}`,
    command: `{podman} run --rm ${option} {o} slipway-test ${program}`,
    ...wanted,
  };
}

/** Has a container `box` for the time of a command. */
function withBox(name: string, option: string, command: string, expected: Omit<Check, "name" | "command"> = {}): Check {
  const before = `{podman} run -d --name box ${option} {o} slipway-test sleep 1000`;
  return { name, command: `${before} && ( ${command} ); e=$?; {podman} rm -f -t 0 box; exit $e`, ...expected };
}

const infra = "--infra-image slipway-test --infra-command '/usr/bin/sleep inf' -v /usr:/usr:ro";

export const podmanOptionChecks: readonly Check[] = [
  run("--userns auto:size=4096", "cat /proc/self/uid_map", "^ +0 +100000 +4096$"),
  run("--userns nomap", "cat /proc/self/uid_map", { code: 125 }),
  run("--uidmap 0:100000:65536 -v $D/shared:/d:idmap", "ls /d"),
  run("--uidmap 0:100000:65536 --network none --read-only", "cat /proc/self/uid_map", "0 +100000"),
  run("--uidmap 0:100000:65536 --sysctl net.ipv4.ip_default_ttl=99", "cat /proc/sys/net/ipv4/ip_default_ttl", "^99$"),
  run("--systemd always", "grep -c ' /run ' /proc/self/mountinfo", "^1$"),
  run("--read-only --read-only-tmpfs", "sh -c 'echo > /tmp/x; echo > /run/x; ls /run/x'", "^/run/x$"),
  run("--mount type=tmpfs,dst=/t,tmpfs-mode=1700,notmpcopyup", "stat -c %a /t", "^1700$"),
  run("--tmpfs /etc:tmpcopyup", "ls /etc"),
  run(
    "--mount type=bind,src=$D/shared,dst=/d,ro,bind-propagation=rslave",
    "grep ' /d ' /proc/self/mountinfo",
    "master:",
  ),
  run("--mount type=devpts,dst=/devpts", "ls /devpts", "^ptmx$"),
  run("--security-opt mask=/proc/version", "cat /proc/version", "^$"),
  run("--security-opt unmask=/proc/acpi:/proc/kcore", "grep -c /proc/kcore /proc/self/mountinfo", {
    code: 1,
    output: "^0$",
  }),
  run("--security-opt unmask=ALL", "grep -c ' /proc/' /proc/self/mountinfo", { code: 1, output: "^0$" }),
  run("--security-opt no-new-privileges --security-opt seccomp=$D/seccomp.json", "mkdir /tmp/x", {
    code: 1,
    output: "name too long",
  }),
  run("--cgroups no-conmon", "true"),
  run("--cgroups disabled", "true", { code: 125 }),
  run("--cgroupns host", "cat /proc/self/cgroup", "libpod"),
  {
    name: "run --preserve-fds",
    command: "{podman} run --rm --preserve-fds 1 {o} slipway-test cat /proc/self/fd/3 3< $D/file",
    output: "^content$",
  },
  run("--umask 0077", "sh -c umask", "^0077$"),
  run("--group-add 44 -u 3:4", "id", "groups=4.*,44"),
  run("--tz UTC --timeout 1", "sleep 1000", { code: 255 }),
  run("--env-host=false --env A=b --unsetenv PATH", "/usr/bin/env", "^A=b$"),
  run("--pid host", "sh -c 'test $$ != 1'"),
  run("--ipc host", "true"),
  run("--uts host --network host", "ls /sys/class/net", "^lo$"),
  run("--device /dev/fuse:/dev/other:rw", "test -c /dev/other"),
  run("--device-cgroup-rule 'c 10:229 rwm' --cap-add mknod", "sh -c 'mknod /f c 10 229 && head -c 0 /f'"),
  run("--annotation run.oci.keep_original_groups=1", "true"),
  run("--personality LINUX32", "uname -m", "^i686$"),
  run("--oom-score-adj 555", "cat /proc/self/oom_score_adj", "^555$"),
  withBox("exec --preserve-fds", "", "{podman} exec --preserve-fds 1 box cat /proc/self/fd/3 3< $D/file", {
    output: "^content$",
  }),
  withBox("exec --privileged", "", "{podman} exec --privileged box grep CapEff /proc/self/status", {
    output: "f[ef]ffffff$",
  }),
  withBox("exec -d", "", "{podman} exec -d box sh -c 'echo here > /made'; sleep 1; {podman} exec box cat /made", {
    output: "^here$",
  }),
  withBox("exec in a user namespace", "--uidmap 0:100000:65536", "{podman} exec box cat /proc/self/uid_map", {
    output: "0 +100000",
  }),
  withBox("exec as another user in a user namespace", "--uidmap 0:100000:65536", "{podman} exec -u 9:8 box id", {
    output: "uid=9 gid=8",
  }),
  withBox(
    "pause and stop",
    "",
    "{podman} pause box && {podman} stop -t 1 box; {podman} unpause box; {podman} stop -t 1 box",
  ),
  withBox("checkpoint is refused", "", "{podman} container checkpoint box", { code: 125 }),
  withBox("top", "", "{podman} top box pid huser args", { output: "sleep 1000" }),
  withBox("wait", "", "({podman} kill box) & {podman} wait box", { output: "137" }),
  withBox(
    "init, start",
    "",
    "{podman} create --name second {o} slipway-test echo said && {podman} init second && {podman} inspect -f '{{.State.Status}}' second && {podman} start -a second; {podman} rm second",
    {
      output: "^initialized$",
    },
  ),
  {
    name: "pod with two containers that share namespaces",
    command: `export CONTAINERS_CONF=$D/containers.conf; {podman} pod create --name p ${infra} && {podman} run -d --pod p --name one slipway-test sleep 1000 && {podman} run --rm --pod p slipway-test readlink /proc/self/ns/net && {podman} exec one readlink /proc/self/ns/net; e=$?; {podman} pod rm -f -t 0 p; exit $e`,
    output: "^(net:\\S+)\\n\\1$",
  },
  {
    name: "pod pause, unpause, restart, stop",
    command: `export CONTAINERS_CONF=$D/containers.conf; {podman} pod create --name p ${infra} && {podman} run -d --pod p slipway-test sleep 1000 && {podman} pod pause p && {podman} pod unpause p && {podman} pod stop -t 0 p && {podman} pod start p; e=$?; {podman} pod rm -f -t 0 p; exit $e`,
  },
  {
    name: "pod --share pid",
    command: `export CONTAINERS_CONF=$D/containers.conf; {podman} pod create --name p --share pid,ipc,net ${infra} && {podman} run --rm --pod p slipway-test cat /proc/1/comm; e=$?; {podman} pod rm -f -t 0 p; exit $e`,
    output: "^sleep$",
  },
  {
    name: "run: out of memory",
    command: `{podman} run --name box --memory 16m {o} slipway-test tail /dev/zero; {podman} inspect -f '{{.State.ExitCode}}' box; {podman} rm -f box`,
    output: "^137$",
  },
  {
    name: "--runtime-flag",
    command: "{podman} --runtime-flag log-format=json --runtime-flag debug run --rm {o} slipway-test echo said",
    output: "^said$",
  },
  {
    name: "systemd as the manager of cgroups: directories as it would make them",
    command: "{podman-systemd} run --rm {o} slipway-test echo said",
    output: "^said$",
  },
  {
    name: "ten at once",
    command:
      "for i in 1 2 3 4 5 6 7 8 9 10; do {podman} run --rm --network none {o} slipway-test echo number $i & done | grep -c ^number",
    output: "^10$",
  },
];
