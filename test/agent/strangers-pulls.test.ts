/** What commits of strangers get of registries: what anybody gets, whatever the agent may have, or has had. */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { defaultUntrustedPolicy } from "../../agent/index.ts";
import { RegistryClient } from "../../runtime/index.ts";
import { ociLayout } from "../runtime/image-fixture.ts";
import { DebianRegistry, password, ScriptedRegistry } from "../runtime/registry-fixture.ts";
import { shellLayer } from "../runtime/shell-layer.ts";
import { tarArchive } from "../runtime/tar-archive.ts";
import { BuildStepFixture } from "./build-fixture.ts";

const untrusted = defaultUntrustedPolicy;
const shell = gzipped(shellLayer());
const secretLayer = gzipped(tarArchive([{ name: "etc/word", content: "of the company" }]));
let fixture: BuildStepFixture;
/** Asks for a password. */
let closed: DebianRegistry;
/** A stranger's own. */
let theirs: ScriptedRegistry;
/** The agent's, with credentials. */
let client: RegistryClient;
let image: string;

function gzipped(tar: Buffer) {
  return { tar, blob: gzipSync(tar, { level: 1 }), mediaType: "application/vnd.oci.image.layer.v1.tar+gzip" };
}

beforeAll(async () => {
  fixture = await BuildStepFixture.open();
  closed = await DebianRegistry.start({ auth: "basic" });
  theirs = await ScriptedRegistry.start();
  client = new RegistryClient({ hosts: { [closed.host]: { username: "ali", password } } }, { retryBaseMs: 1 });
  image = `${closed.host}/team/app:1`;
  closed.push("team/app:1", [shell, secretLayer]);
});
afterAll(async () => {
  client[Symbol.dispose]();
  await theirs[Symbol.asyncDispose]();
  await closed[Symbol.asyncDispose]();
  await fixture[Symbol.asyncDispose]();
});
afterEach(() => fixture.expectClean());

const show = (name: string, more = "") => `
      - { run: cat /etc/word, image: "${name}"${more} }
`;

async function trusted() {
  const result = await fixture.run(show(image), {}, { registry: client });
  expect(result).toMatchObject({ status: "success" });
  expect(result.logs[0]).toMatch(/of the company$/);
  return /is (sha256:\S+):/.exec(result.logs[0] ?? "")?.[1] as string;
}

describe("a stranger's commit", () => {
  test("does not get an image for which the agent has credentials, by no name and by no policy, neither before nor after others have", async () => {
    const before = await fixture.run(show(image), {}, { registry: client, untrusted });
    expect(before).toMatchObject({
      status: "failure",
      reason: expect.stringMatching(/denies access to "team\/app" .*commits of strangers pull without credentials/),
    });
    const digest = await trusted();
    for (const [name, more] of [
      [image, ""],
      [`${closed.host}/team/app@${digest}`, ""],
      [image, ", pull: missing"],
      [image, ", pull: never"],
    ] as const) {
      const result = await fixture.run(show(name, more), {}, { registry: client, untrusted });
      expect(result).toMatchObject({ status: "failure", reason: expect.stringMatching(/denies access|pull is never/) });
      expect(result.logs.join()).not.toContain("company");
    }
    for (const dockerfile of [`FROM ${image}\nRUN cat /etc/word\n`, `FROM BASE\nCOPY --from=${image} /etc/word /w\n`]) {
      const built = await fixture.run(
        "      - build: .\n",
        { Dockerfile: dockerfile },
        { registry: client, untrusted },
      );
      expect(built).toMatchObject({ status: "failure", reason: expect.stringContaining("denies access") });
    }
    // Of a service, too.
    const [job] = fixture.jobs(
      `jobs: { j: { services: { s: { run: cat /etc/word, image: "${image}" } }, steps: [{ run: "sleep 1" }] } }`,
    );
    const served = await fixture.runJob(job as NonNullable<typeof job>, {}, { registry: client, untrusted });
    expect(served.reason).toMatch(/denies access/);
  });

  test("may be given such by the operator", async () => {
    const lenient = { ...untrusted, privateImages: true };
    const result = await fixture.run(show(image), {}, { registry: client, untrusted: lenient });
    expect(result).toMatchObject({ status: "success" });
  });

  test("does not get a layer of the store by naming its digests in a manifest of its own", async () => {
    await trusted();
    theirs.add("claims", [shell, secretLayer]);
    const digest = [...theirs.blobs].find(([, content]) => content.equals(secretLayer.blob))?.[0] as string;
    theirs.blobs.delete(digest);
    const result = await fixture.run(show(`${theirs.host}/t:claims`), {}, { registry: client, untrusted });
    expect(result).toMatchObject({ status: "failure", reason: expect.stringContaining("does not have it") });
    // And those whom the store is for do.
    theirs.requests.length = 0;
    expect(await fixture.run(show(`${theirs.host}/t:claims`), {}, { registry: client })).toMatchObject({
      status: "success",
    });
  });

  test("does not get a layer of the store by an image in its workspace that names it", async () => {
    await trusted();
    const files = ociLayout([shell, secretLayer]);
    const directory = fixture.workspace({});
    for (const { name, content } of files) {
      mkdirSync(dirname(join(directory, "image", name)), { recursive: true });
      const isSecret = Buffer.isBuffer(content) && content.equals(secretLayer.blob);
      // As many bytes, as the manifest says.
      const written = isSecret ? Buffer.alloc(secretLayer.blob.length) : (content ?? "");
      writeFileSync(join(directory, "image", name), written);
    }
    const result = await fixture.run(show("./image"), directory, { registry: client, untrusted });
    expect(result.status).toBe("failure");
    expect(result.logs.join()).not.toContain("company");
    for (const { name, content } of files) writeFileSync(join(directory, "image", name), content ?? "");
    expect(await fixture.run(show("./image"), directory, { registry: client, untrusted })).toMatchObject({
      status: "success",
    });
  });

  test("does not get what another build has made, whose digest every log tells", async () => {
    const made = await fixture.run(
      '      - build: { tags: "REGISTRY/made:1" }\n',
      { Dockerfile: "FROM BASE\nRUN echo of the company > /etc/word\n" },
      { registry: client },
    );
    const name = `${fixture.registry.host}/made@${made.steps[0]?.imageDigest}`;
    expect(await fixture.run(show(name), {}, { registry: client })).toMatchObject({ status: "success" });
    const result = await fixture.run(show(name), {}, { registry: client, untrusted });
    expect(result).toMatchObject({ status: "failure", reason: expect.stringContaining("does not have it") });
  });

  test("gets what anybody gets, and layers that are known to be anybody's from the store", async () => {
    const word = gzipped(tarArchive([{ name: "etc/word", content: "for all" }]));
    theirs.add("open", [shell, word]);
    const name = `${theirs.host}/t:open`;
    await fixture.run(show(name), {}, { registry: client });
    theirs.requests.length = 0;
    // The layer with the shell is in the store as one that asked for a password, until a stranger has been given it.
    expect(await fixture.run(show(name), {}, { registry: client, untrusted })).toMatchObject({ status: "success" });
    const digest = [...theirs.blobs].find(([, content]) => content.equals(word.blob))?.[0] as string;
    expect(theirs.requests.filter((line) => line.includes(`/blobs/${digest}`))).toEqual([]);
    theirs.requests.length = 0;
    const result = await fixture.run(show(name), {}, { registry: client, untrusted });
    expect(result.logs[0]).toMatch(/in the store\nfor all$/);
    expect(theirs.requests.filter((line) => line.includes("/manifests/"))).not.toEqual([]);
    // Of blobs the configuration alone.
    expect(theirs.requests.filter((line) => line.includes("/blobs/"))).toHaveLength(1);
  });

  test("runs in what its own build has made", async () => {
    const result = await fixture.run(
      "      - build: { tags: mine }\n      - { run: cat /word, image: mine }\n      - build: { dockerfile: Next, tags: next }\n      - { run: cat /word, image: next }\n",
      { Dockerfile: "FROM BASE\nRUN echo mine > /word\n", Next: "FROM mine\nRUN echo more >> /word\n" },
      { registry: client, untrusted },
    );
    expect(result).toMatchObject({ status: "success" });
    expect(result.logs[3]).toMatch(/mine\nmore\n$/);
  });
});
