/** The ends of shells, as tests play them. */
import {
  agentInboxSchema,
  agentMessageSchema,
  attemptTokenHeader,
  ShellChannel,
  type ShellMessage,
} from "../../queue/index.ts";
import type { Harness, TestAttempt } from "./harness.ts";

/** One end of a shell that remembers what it heard. */
export class End {
  readonly messages: ShellMessage[] = [];
  readonly bytes: Buffer[] = [];
  readonly channel: ShellChannel<ShellMessage>;
  /** Undefined while it is open. */
  closed: { readonly reason: string | undefined } | undefined;
  /** What has come and was not said to be taken. */
  readonly untaken: (() => void)[] = [];
  holds = false;
  drains = 0;

  constructor(
    channel: (handlers: ConstructorParameters<typeof ShellChannel<ShellMessage>>[2]) => ShellChannel<ShellMessage>,
  ) {
    this.channel = channel({
      message: (message) => void this.messages.push(message),
      data: (kind, bytes, taken) => {
        this.bytes.push(Buffer.concat([Buffer.from([kind]), bytes]));
        if (this.holds) this.untaken.push(taken);
        else taken();
      },
      drain: () => void this.drains++,
      closed: (reason) => (this.closed = { reason }),
    });
    this.channel.start();
  }

  static async person(
    harness: Harness,
    build: { readonly id: string },
    query = "job=first&step=greet",
    headers: Record<string, string> = {},
  ): Promise<End> {
    const url = new URL(`/api/builds/${build.id}/shell?${query}`, harness.server.address);
    const authorization = { authorization: `Bearer ${harness.server.adminToken}` };
    const socket = await ShellChannel.dial(url, { headers: { ...authorization, ...headers } });
    return new End((handlers) => new ShellChannel(socket, agentMessageSchema as never, handlers as never) as never);
  }

  static async agent(
    harness: Harness,
    session: string,
    attempt: TestAttempt,
    token = attempt.claimed.token,
  ): Promise<End> {
    const url = new URL(`/api/agent/shells/${session}`, harness.server.address);
    const headers = { authorization: `Bearer ${harness.server.agentToken}`, [attemptTokenHeader]: token };
    const socket = await ShellChannel.dial(url, { headers });
    return new End((handlers) => new ShellChannel(socket, agentInboxSchema as never, handlers as never) as never);
  }

  /** All bytes of one kind, or of all. */
  text(kind?: number): string {
    return Buffer.concat(
      this.bytes.filter((bytes) => kind === undefined || bytes[0] === kind).map((bytes) => bytes.subarray(1)),
    ).toString();
  }
}
