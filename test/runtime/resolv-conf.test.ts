import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { jobResolvConf } from "../../runtime/resolv-conf.ts";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "slipway-resolv-"));
});
afterEach(() => rmSync(root, { recursive: true }));

function files(contents: Readonly<Record<string, string>>): void {
  for (const [path, content] of Object.entries(contents)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), content);
  }
}

const conf = (ipv6 = true) => jobResolvConf({ ipv6, root });

describe("jobResolvConf", () => {
  test("takes name servers, the last search line and all options, and nothing else", () => {
    files({
      "etc/resolv.conf":
        "# comment\nnameserver 192.0.2.1 # first\nnameserver 2001:db8::1\ndomain old.example\nsearch a.example b.example\noptions ndots:2\noptions timeout:1\nsortlist 1.2.3.4\n",
    });
    expect(conf().text).toBe(
      "nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch a.example b.example\noptions ndots:2 timeout:1\n",
    );
    expect(conf(false).nameservers).toEqual(["192.0.2.1"]);
  });

  test.for(["127.0.0.53", "127.0.0.1", "::1"])("translates the stub resolver %s to those that it asks", (stub) => {
    files({
      "etc/resolv.conf": `nameserver ${stub}\noptions edns0 trust-ad\nsearch .\n`,
      "run/systemd/resolve/resolv.conf": "nameserver 192.0.2.7\nnameserver fe80::1%eth0\nsearch lan\n",
    });
    expect(conf().text).toBe("nameserver 192.0.2.7\nsearch lan\n");
  });

  test("takes the upstreams of NetworkManager, where systemd-resolved is not there or has none", () => {
    files({
      "etc/resolv.conf": "nameserver 127.0.0.1\nsearch corp.example\n",
      "run/systemd/resolve/resolv.conf": "# none\n",
      "run/NetworkManager/no-stub-resolv.conf": "nameserver 192.0.2.8\nsearch other.example\n",
    });
    expect(conf().text).toBe("nameserver 192.0.2.8\nsearch corp.example\n");
  });

  test("leaves out a stub that stands beside others, and more than three", () => {
    files({
      "etc/resolv.conf": "nameserver 127.0.0.53\n" + [1, 2, 3, 4].map((n) => `nameserver 192.0.2.${n}\n`).join(""),
    });
    expect(conf().nameservers).toEqual(["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
  });

  test("says what is wrong where no name can be resolved", () => {
    expect(conf()).toMatchObject({ text: "", nameservers: [], problem: /names no name server/ });
    files({ "etc/resolv.conf": "nameserver 127.0.0.1\nnameserver fe80::1%eth0\nnameserver junk\n" });
    expect(conf().problem).toContain("names only 127.0.0.1, fe80::1%eth0, junk, which jobs do not reach");
  });
});
