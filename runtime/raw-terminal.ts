/** A terminal of ours whose keys and output are another terminal's. */
import { TCGETS, TCSETSW } from "./linux.ts";
import { trySyscall } from "./syscall.ts";

// struct termios of the kernel: four flag words, a byte, 19 control characters.
const termiosBytes = 36;
const flags = { input: 0, output: 4, control: 8, local: 12 } as const;
const controlCharacters = 17;
const [VTIME, VMIN] = [5, 6];

// IGNBRK BRKINT PARMRK ISTRIP INLCR IGNCR ICRNL IXON; OPOST; CSIZE PARENB, CS8; ECHO ECHONL ICANON ISIG IEXTEN
const INPUT_OFF = 0o2753;
const OPOST = 0o1;
const ONLCR = 0o4;
const CONTROL_OFF = 0o460;
const CS8 = 0o60;
const LOCAL_OFF = 0o100113;

/** A terminal whose output no terminal shows: line feeds stay what they are instead of becoming two characters. */
export function keepLineFeeds(fd: number): void {
  const termios = Buffer.alloc(termiosBytes);
  if (trySyscall("ioctl", fd, TCGETS, termios) < 0) return;
  termios.writeUInt32LE((termios.readUInt32LE(flags.output) & ~ONLCR) >>> 0, flags.output);
  trySyscall("ioctl", fd, TCSETSW, termios);
}

/**
 * A terminal in raw mode, as cfmakeraw(3) has it, from its making until it is disposed; a process that ends otherwise puts it
 * right, too. Node's own raw mode goes on turning line feeds into two characters: programs that draw would be garbled.
 */
export class RawTerminal implements Disposable {
  readonly #fd: number;
  readonly #before: Buffer;
  readonly #restore = () => this[Symbol.dispose]();

  private constructor(fd: number, before: Buffer) {
    this.#fd = fd;
    this.#before = before;
    const raw = Buffer.from(before);
    const change = (at: number, off: number, on = 0) =>
      raw.writeUInt32LE(((raw.readUInt32LE(at) & ~off) | on) >>> 0, at);
    change(flags.input, INPUT_OFF);
    change(flags.output, OPOST);
    change(flags.control, CONTROL_OFF, CS8);
    change(flags.local, LOCAL_OFF);
    raw[controlCharacters + VTIME] = 0;
    raw[controlCharacters + VMIN] = 1;
    process.on("exit", this.#restore);
    trySyscall("ioctl", fd, TCSETSW, raw);
  }

  /** Undefined if the descriptor is no terminal. */
  static take(fd: number): RawTerminal | undefined {
    const termios = Buffer.alloc(termiosBytes);
    return trySyscall("ioctl", fd, TCGETS, termios) === 0 ? new RawTerminal(fd, termios) : undefined;
  }

  [Symbol.dispose](): void {
    process.off("exit", this.#restore);
    trySyscall("ioctl", this.#fd, TCSETSW, this.#before);
  }
}
