/** Boots the virtual machine under QEMU and shows its console. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import type { Architecture } from "./debian.ts";
import { makeFirstFileSystem } from "./first-file-system.ts";

/** A test may take ten minutes, and Debian's boot takes two or three. */
const silenceMs = 30 * 60_000;
// The terminal may get escape sequences before it.
const resultLine = /SLIPWAY-VM (\d+)/;

interface Board {
  readonly program: string;
  readonly arguments: readonly string[];
  readonly console: string;
  readonly disk: string;
}

const boards: Readonly<Record<Architecture, Board>> = {
  // A disk with the number 8:0, for the validation programs limit that one; without a fifth level of page tables to walk.
  amd64: {
    program: "qemu-system-x86_64",
    arguments: ["-cpu", "max,la57=off", "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=root"],
    console: "ttyS0",
    disk: "sda",
  },
  // Not "max": emulating pointer authentication takes longer than all else.
  arm64: {
    program: "qemu-system-aarch64",
    arguments: ["-M", "virt", "-cpu", "neoverse-n1", "-device", "virtio-blk-pci,drive=root"],
    console: "ttyAMA0",
    disk: "vda",
  },
};

/** The serial console's device, for a unit that writes there. */
export function consoleOf(architecture: Architecture): string {
  return boards[architecture].console;
}

/** Makes an ext4 image of a directory tree. */
export function makeDisk(directory: string, root: string): string {
  const disk = join(directory, "disk.img");
  execFileSync("mke2fs", ["-q", "-t", "ext4", "-d", root, disk, "5G"]);
  return disk;
}

/**
 * Boots, shows the console with the time, and returns the exit code that the guest told.
 *
 * The machine is killed when this process ends, and when it is silent for too long.
 *
 * @param commandLine Further words for the kernel.
 * @returns 125 if it told none.
 */
export async function boot(
  root: string,
  disk: string,
  { architecture, commandLine }: { readonly architecture: Architecture; readonly commandLine: readonly string[] },
): Promise<number> {
  const board = boards[architecture];
  const kernelFile = inBoot(root, "vmlinuz-");
  const device = `/dev/${board.disk}`;
  const firstFileSystem = makeFirstFileSystem(dirname(disk), root, { disk: device });
  const accelerator = process.env["SLIPWAY_TEST_VM_ACCEL"] ?? "tcg,thread=multi";
  const words = ["rw", `console=${board.console}`, "loglevel=3", "panic=-1", ...commandLine];
  // What guards a processor's speculation costs an emulated one time, and it has none.
  const kernel = [`root=${device}`, "mitigations=off", ...words];
  const began = performance.now();
  const qemu = spawn(
    board.program,
    [
      ["-accel", accelerator, ...board.arguments, "-smp", "2", "-m", "4G", "-nographic", "-no-reboot", "-nic", "none"],
      ["-drive", `file=${disk},if=none,id=root,format=raw,cache=unsafe`],
      ["-kernel", kernelFile, "-initrd", firstFileSystem, "-append", kernel.join(" ")],
    ].flat(),
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  qemu.once("error", (error) => console.log(`Cannot start ${board.program}: ${error.message}`));
  const stopKilling = killWithThisProcess(qemu);
  const silence = setTimeout(() => {
    console.log(`The virtual machine has said nothing for ${silenceMs / 60_000} minutes: ended`);
    qemu.kill("SIGKILL");
  }, silenceMs);
  let code = 125;
  for await (const line of createInterface({ input: qemu.stdout })) {
    silence.refresh();
    const result = resultLine.exec(line.trim());
    if (result !== null) code = Number(result[1]);
    const seconds = Math.round((performance.now() - began) / 1000);
    const time = `${String(Math.floor(seconds / 60)).padStart(3)}:${String(seconds % 60).padStart(2, "0")}`;
    console.log(`${time} ${line.trimEnd()}`);
  }
  clearTimeout(silence);
  stopKilling();
  return code;
}

function inBoot(root: string, prefix: string): string {
  const name = readdirSync(join(root, "boot")).find((name) => name.startsWith(prefix));
  if (name === undefined) throw new Error(`The virtual machine has no /boot/${prefix}*`);
  return join(root, "boot", name);
}

function killWithThisProcess(child: ChildProcess): () => void {
  const kill = () => void child.kill("SIGKILL");
  // Before the directory with its disk is removed, which may take long.
  process.prependOnceListener("exit", kill);
  return () => process.off("exit", kill);
}
