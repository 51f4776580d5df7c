/** Agents of a test, in its own process and on one host. */
import { pino } from "pino";
import { Agent, type AgentOptions } from "../../agent/index.ts";
import { Host, RegistryClient } from "../../runtime/index.ts";
import type { Harness } from "../server/harness.ts";

/** Where they get their jobs. */
type Access = Pick<AgentOptions, "serverUrl" | "token" | "redisUrl">;

export const accessOf = ({ server, redis }: Harness): Access => ({
  serverUrl: server.address,
  token: server.agentToken,
  redisUrl: redis.url,
});

export class TestAgents implements AsyncDisposable {
  readonly host: Host;
  readonly #registry = new RegistryClient({});
  readonly #running: Agent[] = [];

  private constructor(host: Host) {
    this.host = host;
  }

  static async open(stateDir: string): Promise<TestAgents> {
    return new TestAgents(await Host.open({ stateDir }));
  }

  async start(access: Access, options: Partial<AgentOptions> = {}): Promise<Agent> {
    const agent = new Agent({
      ...access,
      host: this.host,
      registry: this.#registry,
      dataDir: this.host.stateDir,
      pools: ["default"],
      jobs: 2,
      name: "tester",
      logger: pino({ level: "silent" }),
      ...options,
    });
    this.#running.push(agent);
    await agent.start();
    return agent;
  }

  /** Stops all that have been started. */
  async stop(): Promise<void> {
    for (const agent of this.#running.splice(0)) await agent.stop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.host[Symbol.asyncDispose]();
    this.#registry[Symbol.dispose]();
  }
}
