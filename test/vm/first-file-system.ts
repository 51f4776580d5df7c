/**
 * A first file system in memory that finds the disk. Not Debian's own, which takes a minute under emulation and gives up
 * when the disk has not come half a minute later, and which does not exist where no package was configured.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";

/** The drivers of the disk; each needs others of them, so they are inserted in turn until all are in. */
const drivers =
  /^(?:failover|scsi_common|scsi_mod|sd_mod|virtio|virtio_blk|virtio_pci|virtio_pci_legacy_dev|virtio_pci_modern_dev|virtio_ring|virtio_scsi)\.ko$/;

const init = (disk: string) => `#!/busybox sh
/busybox mount -t devtmpfs devtmpfs /dev
for round in 1 2 3 4; do
  for driver in /*.ko; do /busybox insmod $driver 2>/dev/null; done
done
until [ -b ${disk} ]; do /busybox sleep 1; done
/busybox mount -t ext4 ${disk} /root
exec /busybox switch_root /root /sbin/init
`;

/**
 * Writes it to `directory`, as the kernel unpacks it (cpio, newc).
 *
 * @param root The Debian that it boots, for its busybox and its kernel's modules.
 * @param options.disk The device that `root` will be on.
 * @returns Its path.
 */
export function makeFirstFileSystem(directory: string, root: string, { disk }: { readonly disk: string }): string {
  const modules = join(root, "usr/lib/modules");
  const found = (readdirSync(modules, { recursive: true }) as string[]).filter((name) => drivers.test(basename(name)));
  const archive = Buffer.concat([
    ...["dev", "root"].map((name) => entry(name, 0o40755)),
    entry("busybox", 0o100755, readFileSync(join(root, "usr/bin/busybox"))),
    entry("init", 0o100755, Buffer.from(init(disk))),
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
