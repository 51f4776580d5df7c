/** What a person's terminal shows of a step: its secrets are masked there, as in the log. */
import { Masker, type SecretIndex } from "./masker.ts";
import type { EnterOptions } from "./step-access.ts";

/** What may be the beginning of a secret waits so long for the rest: shorter than a person notices, longer than a program pauses. */
const heldMs = 40;

/**
 * Masks secrets in what goes to a terminal. What is typed and shown one character at a time is not recognised; pipes are left as
 * they are, for what goes through them may be an archive.
 */
export function maskTerminal(options: EnterOptions, secrets: SecretIndex | undefined): MaskedTerminal {
  if (options.terminal === undefined || secrets === undefined) return { options, end: () => {} };
  const masker = new Masker(secrets);
  const { output } = options;
  let timer: NodeJS.Timeout | undefined;
  const flush = () => masker.end((bytes) => void output("stdout", bytes));
  return {
    options: {
      ...options,
      output: (stream, chunk) => {
        clearTimeout(timer);
        let isWelcome: boolean | void = true;
        masker.write(chunk, (bytes) => {
          if (output(stream, bytes) === false) isWelcome = false;
        });
        timer = setTimeout(flush, heldMs);
        return isWelcome;
      },
    },
    end: () => {
      clearTimeout(timer);
      flush();
    },
  };
}

export interface MaskedTerminal {
  /** With an output that masks. */
  readonly options: EnterOptions;
  /** Writes what is held back. To be called when the process has ended, before anybody is told. */
  readonly end: () => void;
}
