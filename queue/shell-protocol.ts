/**
 * A shell in a step: a person's command line and the agent each hold a WebSocket to the server, which pairs them.
 *
 * GET /api/builds/:id/shell?job=&step=&attempt=    the person's; needs the admin token
 * GET /api/agent/shells/:session                   the agent's; needs the agent token and the attempt's
 *
 * Text messages are JSON (below). Binary messages are one byte that says what they carry (`shellData`) and the bytes. The
 * person's first message is `open`, and nothing follows before the agent's `opened`; the server hands it on to the agent once
 * that has dialed in, and from then on every message as it is. Bytes in either direction are limited by credit (`shell-channel.ts`), so that neither a flood nor a
 * reader that stands still costs memory anywhere.
 */
import { z } from "zod";

/** The first byte of a binary message. */
export const shellData = { stdin: 0, stdout: 1, stderr: 2 } as const;
export type ShellData = (typeof shellData)[keyof typeof shellData];

/** The server asks both ends for a sign of life this often; who hears nothing for three times as long hangs up. */
export const shellPingMs = 15_000;
/** No message is longer; arguments of a command count. */
export const maxShellMessageBytes = 256 << 10;

const dimension = z.number().int().min(1).max(65_535);
export const terminalSizeSchema = z.object({ rows: dimension, columns: dimension });
export type TerminalSize = z.infer<typeof terminalSizeSchema>;

/** Signals that a person may send to a command without a terminal; a terminal makes its own out of keys. */
export const shellSignals = ["SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP"] as const;

const openSchema = z.object({
  type: z.literal("open"),
  /** The command; without it the image's shell. */
  args: z
    .array(z.string().max(128 << 10))
    .min(1)
    .max(4096)
    .optional(),
  /** Without: three pipes. */
  terminal: terminalSizeSchema.extend({ term: z.string().regex(/^[\w.+-]{1,64}$/) }).optional(),
  /** Who opens it, in their own words, and after the server has added what it knows, in its; for logs. */
  by: z
    .string()
    .max(400)
    .regex(/^[^\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]*$/u),
});
export type ShellOpen = z.infer<typeof openSchema>;

/** What the agent gets instead: the step it is about as well. */
const openStepSchema = openSchema.extend({ attemptId: z.string(), step: z.number().int().nonnegative() });
export type ShellOpenStep = z.infer<typeof openStepSchema>;

const ackSchema = z.object({ type: z.literal("ack"), cost: z.number().int().positive() });

export const clientMessageSchema = z.discriminatedUnion("type", [
  openSchema,
  terminalSizeSchema.extend({ type: z.literal("resize") }),
  z.object({ type: z.literal("signal"), signal: z.enum(shellSignals) }),
  /** The end of standard input. */
  z.object({ type: z.literal("end") }),
  /** So much of the output has been taken. */
  ackSchema,
]);
export type ShellClientMessage = z.infer<typeof clientMessageSchema>;

/** What an agent receives: the client's messages, with the step in the first. */
export const agentInboxSchema = z.union([openStepSchema, clientMessageSchema]);

export const agentMessageSchema = z.discriminatedUnion("type", [
  /** The server's: the agent that is being waited for. */
  z.object({ type: z.literal("waiting"), agent: z.string() }),
  /** It runs; `text` says what in. */
  z.object({ type: z.literal("opened"), text: z.string() }),
  /** So much of the input has been taken. */
  ackSchema,
  /** It has ended; all of its output came before. `reason` where the exit code does not say all. */
  z.object({ type: z.literal("exit"), exitCode: z.number().int().min(0).max(255), reason: z.string().optional() }),
  /** It could not be opened, or was cut off; nothing follows. */
  z.object({ type: z.literal("error"), message: z.string() }),
]);
export type ShellAgentMessage = z.infer<typeof agentMessageSchema>;

/** A message as it is sent. */
export type ShellMessage = ShellClientMessage | ShellOpenStep | ShellAgentMessage;

/** Parses a text message. @throws {Error} If it is not one of the schema's. */
export function parseShellMessage<T>(schema: z.ZodType<T>, text: string): T {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("it sent a message that is not JSON");
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new Error(`it sent a message that is not as expected: ${issue?.path.join(".") ?? ""} ${issue?.message ?? ""}`);
}
