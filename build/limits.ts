/** What a Dockerfile may not exceed; docs/images.md lists them. */
export const LIMITS = {
  /** Of the file; a larger one is refused unread. */
  fileBytes: 4 * 2 ** 20,
  /** Of one line of the file, but for those of here-documents: BuildKit's own limit (bufio.MaxScanTokenSize). */
  lineLength: 65_535,
  /** Of an instruction whose lines are joined. A shell-form command is one argument: execve(2) takes 128 KiB. */
  instructionLength: 2 ** 20,
  instructions: 10_000,
  stages: 1000,
  /** Names in one ENV, LABEL, ARG, and words of one instruction. */
  words: 10_000,
} as const;
