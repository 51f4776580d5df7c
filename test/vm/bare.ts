/**
 * What boots a Debian whose packages were unpacked but never configured, for no program of another architecture can be run
 * here: a script in systemd's place.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const init = `#!/bin/sh
export PATH=/usr/bin:/bin:/usr/sbin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,gid=5,mode=620 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
ip link set lo up
depmod
modprobe -a loop overlay tun
# A cgroup below the root, as a service has, with all controllers.
cd /sys/fs/cgroup
mkdir -p system.slice/slipway-test.service
for directory in . system.slice; do
  for controller in $(cat cgroup.controllers); do echo "+$controller" > $directory/cgroup.subtree_control; done
done
echo $$ > system.slice/slipway-test.service/cgroup.procs
exec /opt/slipway-test
`;

/** Gives an unpacked tree its accounts, its first process, and what packages would have made when configured. */
export function installInit(root: string): void {
  writeFileSync(
    join(root, "etc/passwd"),
    "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n",
  );
  writeFileSync(join(root, "etc/group"), "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n");
  writeFileSync(join(root, "etc/nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n");
  writeFileSync(join(root, "usr/sbin/init"), init, { mode: 0o755 });
  for (const name of ["dev", "proc", "sys", "run", "root", "tmp", "var/tmp"]) {
    mkdirSync(join(root, name), { recursive: true });
  }
}
