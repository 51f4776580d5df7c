/**
 * The arguments, environment and program candidates of a process as the program's memory wants them: execve's pointer
 * arrays, already absolute for the address to which the block will be read.
 *
 * | offset | type | meaning |
 * |---|---|---|
 * | 0 | u32 | number of candidates |
 * | 4 | u32 | address of argv |
 * | 8 | u32 | address of envp |
 * | 12 | u32 × 32 | addresses of the candidate paths; unused ones lead to an empty string |
 */
export const processLayout = { count: 0, argv: 4, envp: 8, candidates: 12, maxCandidates: 32 } as const;

/** What the program reserves; the kernel takes at most a quarter of the stack limit, 2 MiB, for both together. */
export const processBytes = 4 << 20;

const headerBytes = 12 + 4 * processLayout.maxCandidates;

/** The block, to be placed at `address`. @throws {Error} If arguments and environment are too large or contain a NUL. */
export function processBlock(
  address: bigint,
  process: { readonly args: readonly string[]; readonly env: Readonly<Record<string, string>> },
): Buffer {
  const env = Object.entries(process.env).map(([name, value]) => `${name}=${value}`);
  const candidates = programCandidates(process.args[0] ?? "", process.env["PATH"]);
  const texts = ["", ...candidates, ...process.args, ...env];
  if (texts.some((text) => text.includes("\0"))) {
    throw new Error("Cannot start the process: an argument or environment variable contains a NUL byte");
  }
  const pointers = process.args.length + 1 + env.length + 1;
  const size = headerBytes + pointers * 8 + texts.reduce((sum, text) => sum + Buffer.byteLength(text) + 1, 8);
  if (size > processBytes) {
    throw new Error(
      `Cannot start the process: its arguments and environment are ${size} bytes, of ${processBytes} at the most`,
    );
  }
  const block = Buffer.alloc(size);
  let end = headerBytes + ((8 - (headerBytes % 8)) % 8) + pointers * 8;
  const put = (text: string): number => {
    const at = end;
    end += block.write(text, at) + 1;
    return Number(address) + at;
  };
  const empty = put("");
  block.writeUInt32LE(candidates.length, processLayout.count);
  for (let i = 0; i < processLayout.maxCandidates; i++) {
    const candidate = candidates[i];
    block.writeUInt32LE(candidate === undefined ? empty : put(candidate), processLayout.candidates + 4 * i);
  }
  let pointerAt = headerBytes + ((8 - (headerBytes % 8)) % 8);
  const putArray = (values: readonly string[]): number => {
    const at = pointerAt;
    for (const value of values) {
      block.writeBigUInt64LE(BigInt(put(value)), pointerAt);
      pointerAt += 8;
    }
    pointerAt += 8;
    return Number(address) + at;
  };
  block.writeUInt32LE(putArray(process.args), processLayout.argv);
  block.writeUInt32LE(putArray(env), processLayout.envp);
  return block;
}

/** Where execvp(3) would look; a name with a slash is itself the only candidate. */
function programCandidates(name: string, path: string | undefined): string[] {
  if (name.includes("/") || name === "") return [name];
  const directories = (path ?? "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").split(":");
  const candidates = directories.map((directory) => `${directory === "" ? "." : directory}/${name}`);
  return [...new Set(candidates)].slice(0, processLayout.maxCandidates);
}
