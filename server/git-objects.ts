import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";

export interface ObjectInfo {
  readonly id: string;
  readonly type: string;
  readonly sizeBytes: number;
}

interface Answer {
  readonly info: ObjectInfo;
  readonly contents: Buffer;
}

interface Request {
  readonly wantsContents: boolean;
  readonly resolve: (answer: Answer | undefined) => void;
  readonly reject: (error: Error) => void;
}

/** A process nobody asks for this long is stopped; the next question starts another (about 3 ms). */
const idleMs = 60_000;

/**
 * Reads objects of one bare repository through one long-lived `git cat-file --batch-command`: a question costs a round trip
 * on a pipe instead of a process. Questions may overlap; git answers in order. New packs are found without a restart.
 */
export class GitObjects implements Disposable {
  readonly #dir: string;
  readonly #env: Readonly<Record<string, string>>;
  #child: ChildProcessWithoutNullStreams | undefined;
  #requests: Request[] = [];
  #buffered: Buffer[] = [];
  #bufferedBytes = 0;
  #neededBytes = 1;
  #idle: NodeJS.Timeout | undefined;

  constructor(dir: string, env: Readonly<Record<string, string>>) {
    this.#dir = dir;
    this.#env = env;
  }

  /** Says what an object is, or `undefined` if the repository does not have it. `name` must be of our making, never input. */
  async info(name: string): Promise<ObjectInfo | undefined> {
    return (await this.#ask(`info ${name}`, false))?.info;
  }

  /** Reads a whole object into memory: ask for its size first. */
  async contents(name: string): Promise<Buffer | undefined> {
    return (await this.#ask(`contents ${name}`, true))?.contents;
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#idle);
    this.#child?.kill("SIGKILL");
    this.#child = undefined;
    this.#fail(new Error("Cannot read git objects: the reader was closed"));
  }

  #ask(line: string, wantsContents: boolean): Promise<Answer | undefined> {
    clearTimeout(this.#idle);
    const child = (this.#child ??= this.#start());
    return new Promise((resolve, reject) => {
      this.#requests.push({ wantsContents, resolve, reject });
      child.stdin.write(`${line}\n`);
    });
  }

  #start(): ChildProcessWithoutNullStreams {
    const child = spawn("git", ["--git-dir=.", "cat-file", "--batch-command"], { cwd: this.#dir, env: this.#env });
    let stderr = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr = (stderr + text).slice(-500)));
    child.stdin.on("error", () => {}); // EPIPE: "close" tells why.
    child.stdout.on("data", (chunk: Buffer) => {
      this.#buffered.push(chunk);
      this.#bufferedBytes += chunk.length;
      // Without the count a large object would be copied together again for every chunk of it.
      if (this.#bufferedBytes >= this.#neededBytes) this.#parse();
    });
    const gone = (reason: string) => {
      if (this.#child !== child) return;
      this.#child = undefined;
      this.#fail(new Error(`Cannot read git objects: git cat-file ${reason} ${stderr.trim()}`.trim()));
    };
    child.on("error", (error) => gone(`did not start: ${error.message}`));
    child.on("close", (code, signal) => gone(`ended with ${signal ?? `exit code ${code}`}`));
    return child;
  }

  #parse(): void {
    let data = Buffer.concat(this.#buffered);
    this.#neededBytes = 1;
    while (this.#requests.length > 0) {
      const request = this.#requests[0] as Request;
      const lineEnd = data.indexOf(10);
      if (lineEnd < 0) break;
      const [id = "", type = "", size = ""] = data.toString("utf8", 0, lineEnd).split(" ");
      if (!/^\d+$/.test(size)) {
        // "<name> missing" and "<name> ambiguous" have no size and no contents.
        data = data.subarray(lineEnd + 1);
        this.#requests.shift();
        request.resolve(undefined);
        continue;
      }
      const sizeBytes = Number(size);
      const end = lineEnd + 1 + (request.wantsContents ? sizeBytes + 1 : 0);
      if (data.length < end) {
        this.#neededBytes = end;
        break;
      }
      const contents = request.wantsContents ? data.subarray(lineEnd + 1, end - 1) : Buffer.alloc(0);
      data = data.subarray(end);
      this.#requests.shift();
      request.resolve({ info: { id, type, sizeBytes }, contents });
    }
    this.#buffered = data.length > 0 ? [data] : [];
    this.#bufferedBytes = data.length;
    if (this.#requests.length === 0) this.#restUntilAsked();
  }

  #restUntilAsked(): void {
    this.#idle = setTimeout(() => {
      const child = this.#child;
      this.#child = undefined;
      child?.kill();
    }, idleMs).unref();
  }

  #fail(error: Error): void {
    const requests = this.#requests;
    this.#requests = [];
    this.#buffered = [];
    this.#bufferedBytes = 0;
    this.#neededBytes = 1;
    for (const request of requests) request.reject(error);
  }
}
