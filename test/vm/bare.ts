/**
 * What boots a Debian whose packages were unpacked but never configured, for no program of another architecture can be run
 * here: a first file system in memory that finds the disk, and a script in systemd's place.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";

/** The drivers of the disk; each needs others of them, so they are inserted in turn until all are in. */
const drivers =
  /^(?:failover|virtio|virtio_blk|virtio_pci|virtio_pci_legacy_dev|virtio_pci_modern_dev|virtio_ring)\.ko$/;

const first = `#!/busybox sh
/busybox mount -t devtmpfs devtmpfs /dev
for round in 1 2 3 4; do
  for driver in /*.ko; do /busybox insmod $driver 2>/dev/null; done
done
until [ -b /dev/vda ]; do /busybox sleep 1; done
/busybox mount -t ext4 /dev/vda /root
exec /busybox switch_root /root /opt/slipway-init
`;

const second = `#!/bin/sh
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
  writeFileSync(join(root, "opt/slipway-init"), second, { mode: 0o755 });
  for (const name of ["dev", "proc", "sys", "run", "root", "tmp", "var/tmp"]) {
    mkdirSync(join(root, name), { recursive: true });
  }
}

/** Writes the first file system, as the kernel unpacks it (cpio, newc). @returns Its path. */
export function makeFirstFileSystem(directory: string, root: string): string {
  const modules = join(root, "usr/lib/modules");
  const found = (readdirSync(modules, { recursive: true }) as string[]).filter((name) => drivers.test(basename(name)));
  const archive = Buffer.concat([
    ...["dev", "root"].map((name) => entry(name, 0o40755)),
    entry("busybox", 0o100755, readFileSync(join(root, "usr/bin/busybox"))),
    entry("init", 0o100755, Buffer.from(first)),
    ...found.map((name) => entry(basename(name), 0o100644, readFileSync(join(modules, name)))),
    entry("TRAILER!!!", 0),
  ]);
  const path = join(directory, "initrd.img");
  writeFileSync(path, archive);
  return path;
}

/** @see https://docs.kernel.org/driver-api/early-userspace/buffer-format.html */
function entry(name: string, mode: number, contents = Buffer.alloc(0)): Buffer {
  const links = 1;
  const nameBytes = name.length + 1;
  // Number, mode, user, group, links, time, size, device, device of a node, length of the name, checksum.
  const fields = [0, mode, 0, 0, links, 0, contents.length, 0, 0, 0, 0, nameBytes, 0];
  const header = `070701${fields.map((value) => value.toString(16).padStart(8, "0")).join("")}${name}\0`;
  const padded = (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
  return Buffer.concat([padded(Buffer.from(header)), padded(contents)]);
}
