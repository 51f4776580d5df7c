/** Compiled programs in sealed memory: containers of one shape start from the same file. */
import { compileProgram, type Operation, type Program } from "./program.ts";
import { sealedProgram } from "./start-program.ts";
import { architecture, close } from "./syscall.ts";

interface CachedProgram {
  readonly program: Program;
  readonly memoryFd: number;
}

const maxPrograms = 64;

/** Keeps the programs used last; one agent has a handful of shapes (image, limits, network). */
export class ProgramCache {
  readonly #programs = new Map<string, CachedProgram>();

  /**
   * Compiles the plan, or finds what it compiled to before.
   *
   * @param key Says everything that `plan` depends on.
   */
  get(key: string, name: string, statusFd: number, plan: () => Operation[]): CachedProgram {
    const known = this.#programs.get(key);
    if (known !== undefined) {
      this.#programs.delete(key); // to the end: used last
      this.#programs.set(key, known);
      return known;
    }
    const program = compileProgram(plan(), { architecture, statusFd });
    const cached = { program, memoryFd: sealedProgram(program.file, name) };
    this.#programs.set(key, cached);
    for (const [oldest, { memoryFd }] of this.#programs) {
      if (this.#programs.size <= maxPrograms) break;
      this.#programs.delete(oldest);
      close(memoryFd);
    }
    return cached;
  }

  close(): void {
    for (const { memoryFd } of this.#programs.values()) close(memoryFd);
    this.#programs.clear();
  }
}
