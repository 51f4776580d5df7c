/** Starts a compiled program from memory: no file on disk, nothing that a container could write to. */
import {
  F_ADD_SEALS,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  MFD_EXEC,
} from "./linux.ts";
import { close, cString, spawn, SyscallError, syscall, trySyscall } from "./syscall.ts";

/**
 * Chooses descriptors there for descriptors here: above all of them, so that no dup2 overwrites one that is still needed,
 * and from few possible starts, so that programs compiled for them can be used again.
 */
export function placeDescriptors<const Sources extends readonly number[]>(
  sources: Sources,
): {
  readonly targets: { readonly [Index in keyof Sources]: number };
  readonly pairs: readonly (readonly [number, number])[];
} {
  const highest = Math.max(...sources);
  let base = 256;
  while (base <= highest) base *= 2;
  const pairs = sources.map((source, i) => [source, base + i] as const);
  return { targets: pairs.map(([, target]) => target) as { [Index in keyof Sources]: number }, pairs };
}

/**
 * Starts a program once and returns its process id; the caller reaps it.
 *
 * @param name What /proc/PID/cmdline shows.
 * @throws {SyscallError}
 */
export function startProgram(
  file: Uint8Array,
  name: string,
  descriptors: readonly (readonly [number, number])[],
): number {
  const memory = sealedProgram(file, name);
  try {
    return startSealedProgram(memory, name, descriptors);
  } finally {
    close(memory);
  }
}

/** Writes a program to memory that nobody can change any more and returns its descriptor. @throws {SyscallError} */
export function sealedProgram(file: Uint8Array, name: string): number {
  const memory = executableMemory(name);
  try {
    const written = syscall("write", memory, file, file.length);
    if (written !== file.length) throw new Error(`Cannot start ${name}: wrote ${written} of ${file.length} bytes`);
    // Sealed: what runs cannot be changed through /proc/PID/exe (the shape of CVE-2019-5736).
    syscall("fcntl", memory, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    return memory;
  } catch (error) {
    close(memory);
    throw error;
  }
}

/** Starts a sealed program; as often as needed, at the same time too. @throws {SyscallError} */
export function startSealedProgram(
  memory: number,
  name: string,
  descriptors: readonly (readonly [number, number])[],
): number {
  // Not /proc/self: there, one of the descriptors just placed may have taken this number.
  return spawn(`/proc/${process.pid}/fd/${memory}`, name, descriptors);
}

let execFlag = MFD_EXEC;

/** MFD_EXEC says that the file is meant to be executed (Linux 6.3); an older kernel does not know the flag. */
function executableMemory(name: string): number {
  const create = () => trySyscall("memfd_create", cString(name), MFD_CLOEXEC | MFD_ALLOW_SEALING | execFlag);
  let memory = create();
  if (memory < 0 && execFlag !== 0) {
    execFlag = 0;
    memory = create();
  }
  if (memory < 0) throw new SyscallError("memfd_create", -memory, `make memory for ${name}`);
  return memory;
}
