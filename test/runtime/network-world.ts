/**
 * A world for agents' networks: a *host* with an uplink, and an *outside* behind it that has every address there is. Both
 * are network namespaces of their own, so nothing of this machine's network is used or changed.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { NetworksOptions, Refusals } from "../../runtime/network.ts";
import type { AgentRequest, Claimed } from "./network-agent.ts";

export const hostAddress = { 4: "198.51.100.1", 6: "2001:db8:9::1" } as const;
export const outsideAddress = { 4: "198.51.100.9", 6: "2001:db8:9::9" } as const;
/** Reachable from the host, so that it is not the network that keeps jobs from them. */
export const metadataAddresses = ["169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"] as const;
export const privateAddress = "10.99.0.1";
export const uplinkMtu = 1440;
export const peerPort = 8000;

function here(file: string): string {
  return fileURLToPath(new URL(file, import.meta.url));
}

/** What stands on standard output when a command has ended; its failure throws. */
function run(program: string, args: readonly string[]): string {
  return execFileSync(program, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], timeout: 120_000 });
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGKILL");
  await once(child, "exit");
}

/** Resolves when the child has written a line. */
async function ready(child: ChildProcess): Promise<void> {
  await once(child.stdout as NodeJS.EventEmitter, "data");
}

/** One network namespace, held by a process. */
class Place {
  readonly #holder: ChildProcess;
  readonly #peers: ChildProcess[] = [];
  readonly output: string[] = [];

  private constructor(holder: ChildProcess) {
    this.#holder = holder;
  }

  static async make(): Promise<Place> {
    const holder = spawn("unshare", ["--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    await ready(holder);
    return new Place(holder);
  }

  get pid(): number {
    return this.#holder.pid ?? 0;
  }

  get enter(): string {
    return `--net=/proc/${this.pid}/ns/net`;
  }

  sh(script: string): string {
    return run("nsenter", [this.enter, "bash", "-e", "-c", script]);
  }

  /** Listens on ports of all addresses. */
  async listen(...ports: number[]): Promise<void> {
    await this.run("network-peer.ts", ...ports.map(String));
  }

  /** Runs a file of this directory until the end; resolves when it is ready. */
  async run(file: string, ...args: string[]): Promise<void> {
    const peer = spawn("nsenter", [this.enter, process.execPath, here(file), ...args], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    this.#peers.push(peer);
    await ready(peer);
    peer.stdout?.on("data", (chunk: Buffer) => this.output.push(chunk.toString()));
  }

  async end(): Promise<void> {
    for (const peer of this.#peers) await stop(peer);
    await stop(this.#holder);
  }
}

/** The network of one job, seen from inside with all rights. */
export class Job {
  readonly #agent: TestAgent;
  readonly claimed: Claimed;

  constructor(agent: TestAgent, claimed: Claimed) {
    this.#agent = agent;
    this.claimed = claimed;
  }

  address(family: 4 | 6): string {
    const found = this.claimed.addresses.find((address) => address.includes(":") === (family === 6));
    if (found === undefined) throw new Error(`The job has no IPv${family} address`);
    return found;
  }

  get enter(): string {
    return `--net=/proc/${this.#agent.pid}/fd/${this.claimed.namespaceFd}`;
  }

  sh(script: string): string {
    return run("nsenter", [this.enter, "bash", "-e", "-c", script]);
  }

  /** Of its link. */
  get hardware(): string {
    return /(?<=link\/ether )\S+/.exec(this.sh("ip -o link show eth0"))?.[0] ?? "";
  }

  get gateway(): string {
    return /(?<=default via )\S+/.exec(this.sh("ip route"))?.[0] ?? "";
  }

  /** What a server says, or why it does not. */
  connect(address: string, port: number = peerPort): string {
    const script = `exec 3<>/dev/tcp/${address}/${port} && cat <&3`;
    try {
      // No test expects silence, so the limit is for a machine at its slowest.
      return run("nsenter", [this.enter, "timeout", "60", "bash", "-c", script]).trim();
    } catch (error) {
      const { status, stderr } = error as { status: number; stderr: string };
      if (status === 124) return "no answer";
      return /: ([^:\n]+)\n*$/.exec(stderr.trim())?.[1] ?? stderr;
    }
  }

  /** Since the last time. */
  takeRefused(): Promise<Refusals> {
    return this.#agent.ask<Refusals>({ kind: "refused", job: this.claimed.job });
  }

  keepPublic(): Promise<void> {
    return this.#agent.ask({ kind: "keep-public", job: this.claimed.job });
  }

  async dispose(): Promise<void> {
    await this.#agent.ask({ kind: "dispose", job: this.claimed.job });
    await this.#agent.ask({ kind: "settle" });
  }
}

/** An agent in a process of its own, on the host of the world. */
export class TestAgent {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
  #sequence = 0;

  constructor(child: ChildProcess) {
    this.#child = child;
    this.#waiting.set(0, Promise.withResolvers());
    child.on("message", ({ id, result, error }: { id: number; result?: unknown; error?: string }) => {
      const waiting = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) waiting?.resolve(result);
      else waiting?.reject(new Error(error));
    });
    child.on("exit", () => {
      for (const { reject } of this.#waiting.values()) reject(new Error("The agent has ended"));
      this.#waiting.clear();
    });
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  async opened(): Promise<void> {
    await this.#waiting.get(0)?.promise;
  }

  ask<Result>(request: AgentRequest): Promise<Result> {
    const waiting = Promise.withResolvers<unknown>();
    const id = ++this.#sequence;
    this.#waiting.set(id, waiting);
    this.#child.send({ id, request });
    return waiting.promise as Promise<Result>;
  }

  async claim(): Promise<Job> {
    return new Job(this, await this.ask<Claimed>({ kind: "claim" }));
  }

  async close(): Promise<void> {
    await this.ask({ kind: "close" }).catch(() => undefined);
    if (this.#child.exitCode === null) await once(this.#child, "exit");
  }

  async kill(): Promise<void> {
    await stop(this.#child);
  }
}

export class World implements AsyncDisposable {
  readonly host: Place;
  readonly outside: Place;
  readonly directory: string;
  readonly #agents: TestAgent[] = [];

  private constructor(host: Place, outside: Place, directory: string) {
    this.host = host;
    this.outside = outside;
    this.directory = directory;
  }

  /** @param options.nameServer Answers on port 53 of the outside, in place of what answers there else. */
  static async make(options: { readonly ipv6?: boolean; readonly nameServer?: boolean } = {}): Promise<World> {
    const [host, outside] = await Promise.all([Place.make(), Place.make()]);
    const directory = mkdtempSync(join(tmpdir(), "slipway-network-"));
    writeFileSync(join(directory, "resolv.conf"), `nameserver ${outsideAddress[4]}\nsearch example.org\n`);
    host.sh(`
      echo 0 > /proc/sys/net/ipv4/ip_forward
      ip link add up0 mtu ${uplinkMtu} type veth peer name out0 mtu ${uplinkMtu} netns ${outside.pid}
      ip address add ${hostAddress[4]}/24 dev up0
      ip link set up0 up
      ip route add default via ${outsideAddress[4]}
    `);
    outside.sh(`
      ip address add ${outsideAddress[4]}/24 dev out0
      ip link set out0 up
      for address in 169.254.169.254/32 100.100.100.200/32 168.63.129.16/32 ${privateAddress}/32; do ip address add $address dev lo; done
    `);
    if (options.ipv6 !== false) {
      host.sh(`
        ip address add ${hostAddress[6]}/64 dev up0 nodad
        ip -6 route add default via ${outsideAddress[6]}
      `);
      outside.sh(`
        ip address add ${outsideAddress[6]}/64 dev out0 nodad
        ip address add fd00:ec2::254/128 dev lo nodad
      `);
    }
    const onPort53 = options.nameServer === true ? outside.run("network-name-server.ts") : outside.listen(53);
    await Promise.all([outside.listen(peerPort), onPort53, host.listen(peerPort)]);
    return new World(host, outside, directory);
  }

  async agent(options: Partial<NetworksOptions> = {}): Promise<TestAgent> {
    const all: NetworksOptions = {
      agent: "slipway-test-1",
      runDir: join(this.directory, "run"),
      poolSize: 1,
      ...options,
    };
    const child = spawn("nsenter", this.#onHost("network-agent.ts", all), {
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    const agent = new TestAgent(child);
    this.#agents.push(agent);
    await agent.opened();
    return agent;
  }

  /** Runs a file with an argument on the host to its end. @returns What it printed, parsed. */
  async run<Result>(file: string, argument: object): Promise<Result> {
    const child = spawn("nsenter", this.#onHost(file, argument), { stdio: ["ignore", "pipe", "inherit"] });
    const pieces: Buffer[] = [];
    child.stdout.on("data", (piece: Buffer) => pieces.push(piece));
    await once(child, "close");
    return JSON.parse(Buffer.concat(pieces).toString()) as Result;
  }

  /** With a resolv.conf of its own, in a mount namespace of its own. */
  #onHost(file: string, argument: object): string[] {
    const script = `mount --bind ${this.directory}/resolv.conf /etc/resolv.conf && exec "$@"`;
    const command = [process.execPath, here(file), JSON.stringify(argument)];
    return [this.host.enter, "unshare", "--mount", "sh", "-c", script, "sh", ...command];
  }

  /** Everything that networks are made of, as the host has it. */
  traces() {
    return {
      links: this.host.sh("ip -o link | awk '{print $2}' | sort").split("\n"),
      neighbors: this.host.sh("ip neighbor show nud permanent"),
      rules: this.host.sh("nft --stateless list ruleset").replace(/# handle \d+/g, ""),
      forwarding: this.host.sh(
        "grep -H . /proc/sys/net/ipv4/conf/{all,up0}/forwarding /proc/sys/net/ipv6/conf/{all,up0}/{forwarding,accept_ra} || true",
      ),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const agent of this.#agents) await agent.kill();
    await this.host.end();
    await this.outside.end();
    rmSync(this.directory, { recursive: true, force: true });
  }
}
