/** What ADD fetches, from servers of the test's own. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { closeSync, mkdirSync, openSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BuildError } from "../../build/index.ts";
import { formatDiagnostic } from "../../pipelines/index.ts";
import { BuildFixture } from "./build-fixture.ts";
import { serveGit } from "./git-daemon.ts";
import { mergeLayers } from "./image-files.ts";
import { isRoot } from "../runtime/image-fixture.ts";

const content = "what the server has\n";
const sha256 = createHash("sha256").update(content).digest("hex");

describe.skipIf(!isRoot)("ADD", () => {
  let fixture: BuildFixture;
  let server: Server;
  let url: string;
  let requests = 0;
  beforeAll(async () => {
    fixture = await BuildFixture.open();
    server = createServer((request, response) => {
      requests++;
      const { pathname } = new URL(request.url ?? "/", "http://server");
      if (pathname === "/loop") response.writeHead(302, { location: "/loop" }).end();
      else if (pathname === "/file-scheme") response.writeHead(302, { location: "file:///etc/passwd" }).end();
      else if (pathname === "/cut") {
        response.writeHead(200, { "content-length": "1000" });
        response.write("half");
        setTimeout(() => response.destroy(), 50);
      } else if (pathname === "/endless") {
        response.writeHead(200);
        const write = () => {
          while (!response.destroyed && response.write(Buffer.alloc(65_536)));
        };
        response.on("drain", write).on("error", () => {});
        write();
      } else if (pathname === "/waits") response.writeHead(200).write("some");
      else if (pathname === "/absent") response.writeHead(404).end();
      else response.writeHead(200, { "last-modified": "Sun, 06 Nov 1994 08:49:37 GMT" }).end(content);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterAll(async () => {
    server.closeAllConnections();
    server.close();
    await fixture[Symbol.asyncDispose]();
  });

  const build = (dockerfile: string, options = {}) => fixture.build(dockerfile, {}, { network: "host", ...options });
  async function failure(dockerfile: string, options = {}): Promise<string> {
    const error = await build(dockerfile, options).then(
      () => new Error("It did not fail"),
      (reason: unknown) => reason as Error,
    );
    if (!(error instanceof BuildError)) throw error;
    return error.diagnostic === undefined ? error.message : formatDiagnostic(error.diagnostic);
  }

  test("fetches a file, and takes it for what its checksum says", async () => {
    const dockerfile = `FROM scratch\nADD --checksum=sha256:${sha256} --chmod=640 ${url}/dir/file?query /to/\n`;
    const built = await build(dockerfile);
    const merged = mergeLayers(await fixture.layers(built));
    expect(merged["to/file"]).toBe(`f 0:0 640 ${content}`);
    // It is asked for again, for it may be another one: but what is made of it is there.
    const before = requests;
    expect((await build(dockerfile)).steps).toMatchObject([{ cached: true }]);
    expect(requests).toBe(before + 1);
  });

  test.for([
    ["--checksum=sha256:" + "0".repeat(64), "/file", `has the checksum sha256:${sha256}`],
    ["--checksum=md5:00", "/file", '"md5:00" is no checksum'],
    ["", "/absent", "the server answered 404"],
    ["", "/loop", "redirected more than 10 times"],
    ["", "/file-scheme", "file: is not supported"],
    ["", "/cut", "cannot be fetched"],
  ] as const)("%s of %s is refused where it stands", async ([flag, path, message]) => {
    const text = await failure(`FROM scratch\nADD ${flag} ${url}${path} /x\n`);
    expect(text).toContain(message);
    expect(text).toMatch(/^Dockerfile:2:/);
  });

  test("looks names up where its commands do", async () => {
    const namespaceFd = openSync("/proc/self/ns/net", "r");
    try {
      const network = { namespaceFd, resolvConf: "", hosts: () => "127.0.0.1 files.test\n" };
      const { port } = server.address() as AddressInfo;
      const built = await build(`FROM scratch\nADD http://files.test:${port}/x /x\n`, { network });
      expect(mergeLayers(await fixture.layers(built))).toHaveProperty(["x"]);
    } finally {
      closeSync(namespaceFd);
    }
  });

  test("gives up a file that is larger than what the build may have", async () => {
    const resources = { memoryBytes: 256 << 20, cpu: 1, pids: 64, diskBytes: 8 << 20 };
    expect(await failure(`FROM scratch\nADD ${url}/endless /x\n`, { resources })).toMatch(
      /it is larger than \d+ bytes/,
    );
  });

  test.for([
    [
      "xz",
      "/Td6WFoAAATm1rRGAgAhAQwAAACPmEGc4Cf/AF9dADIaSqcleZESjjivSb1cNikk2c7j+BvRU6jDFKZLo/d0nPuM/ViOEJ1l4svXdVz1nOr9vW7pqJRgqKY/ZL7rFRILnVEe2oUAXpNjWKIVrQ3jWztwpiYvWWCtPSmTP74AAAC0bOadTVRfDAABe4BQAAAA75Zb2LHEZ/sCAAAAAARZWg==",
    ],
    [
      "bzip2",
      "QlpoOTFBWSZTWVEiL28AAG57gMmQAAJAAM+AAEBnJB5ACAggAFRCamIwQeiZqZqCSSepkaNAAB9rMghBJ0IRfzXIwnVFAhg7gRo9jIdhBkIEcD6N72BLxCrjCIzOtKq8iIgH4u5IpwoSCiRF7eA=",
    ],
  ] as const)("unpacks what is compressed with %s", async ([, base64]) => {
    const archive = Buffer.from(base64, "base64");
    const built = await fixture.build("FROM scratch\nADD a /to/\nADD cut /cut/\n", {
      a: archive,
      cut: archive.subarray(0, 9),
    });
    const merged = mergeLayers(await fixture.layers(built));
    expect(merged["to/dir/file"]).toBe("f 0:0 640 text\n");
    // What is no archive is a file.
    expect(merged).toHaveProperty(["cut/cut"]);
  });

  test("ends with its build", async () => {
    const canceling = new AbortController();
    const building = build(`FROM scratch\nADD ${url}/waits /x\n`, { signal: canceling.signal });
    const before = requests;
    while (requests === before) await delay(5);
    canceling.abort(new Error("enough"));
    await expect(building).rejects.toThrow("enough");
  });

  test("clones a repository, at a ref, a directory of it, with a checksum", async () => {
    const repository = join(fixture.directory, "git/repo.git");
    mkdirSync(join(repository, "dir"), { recursive: true });
    const secret = join(fixture.directory, "secret");
    mkdirSync(join(secret, "below"), { recursive: true });
    writeFileSync(join(secret, "below/file"), "the host's");
    const git = (...args: string[]) =>
      execFileSync("git", ["-C", repository, "-c", "user.name=T", "-c", "user.email=t@example.org", ...args], {
        encoding: "utf8",
      }).trim();
    git("init", "-q", "-b", "main");
    writeFileSync(join(repository, "dir/file"), "first");
    symlinkSync("dir", join(repository, "inside"));
    symlinkSync(secret, join(repository, "outside"));
    git("add", ".");
    git("commit", "-qm", "first");
    git("tag", "v1");
    writeFileSync(join(repository, "dir/file"), "second");
    git("commit", "-qam", "second");
    const commit = git("rev-parse", "v1");
    await using daemon = await serveGit(join(fixture.directory, "git"));
    const remote = `${daemon.url}/repo.git`;
    const dockerfile = [
      "FROM scratch",
      `ADD ${remote}#main /main/`,
      `ADD --checksum=${commit} ${remote}#v1:dir /tag/`,
      `ADD --keep-git-dir=true ${remote} /kept/`,
      `ADD ${remote}#main:inside /inside/`,
    ].join("\n");
    const merged = mergeLayers(await fixture.layers(await build(dockerfile)));
    expect(merged["main/dir/file"]).toMatch(/ second$/);
    expect(merged["tag/file"]).toMatch(/ first$/);
    expect(merged).toHaveProperty(["kept/.git/HEAD"]);
    expect(merged["inside/file"]).toMatch(/ second$/);
    expect(merged).not.toHaveProperty(["main/.git"]);
    expect(await failure(`FROM scratch\nADD --checksum=${commit} ${remote}#main /x\n`)).toContain("is at the commit");
    expect(await failure(`FROM scratch\nADD ${remote}#absent /x\n`)).toContain("cannot be fetched");
    expect(await failure(`FROM scratch\nADD ${remote}#main:../.. /x\n`)).toContain("outside of the repository");
    // Links of the repository lead nowhere outside of it.
    for (const path of ["outside", "outside/below", "inside/../outside/below", "absent", "dir/file"])
      expect(await failure(`FROM scratch\nADD ${remote}#main:${path} /x\n`)).toMatch(
        /there is no directory ".*" in the repository|outside of the repository/,
      );
    // What git would take for an option, or for a command.
    for (const ref of ["--upload-pack=touch${IFS}/tmp/x", "-oProxyCommand=x", "$(id)"])
      expect(await failure(`FROM scratch\nADD ["${remote}#${ref}", "/x"]\n`)).toMatch(
        /cannot be fetched|syntax|unclosed|not/,
      );
  });

  test("leaves nothing behind", async () => {
    await fixture.settled();
    expect(fixture.leftovers()).toEqual([]);
  });
});
