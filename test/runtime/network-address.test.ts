import { describe, expect, test } from "vitest";
import {
  addressBytes,
  addressText,
  isLoopback,
  numberBytes,
  overlap,
  parseRange,
} from "../../runtime/network-address.ts";
import { blockedElements } from "../../runtime/network-rules.ts";

describe("addresses", () => {
  test.for([
    ["10.231.0.1", "10.231.0.1"],
    ["::", "::"],
    ["::1", "::1"],
    ["fd00:EC2::254", "fd00:ec2::254"],
    ["2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
    ["1:2:3:4:5:6:7:0", "1:2:3:4:5:6:7:0"],
    ["::ffff:192.0.2.1", "::ffff:c000:201"],
    ["fe80::", "fe80::"],
  ] as const)("%s is written as %s", ([given, canonical]) => {
    expect(addressText(addressBytes(given))).toBe(canonical);
  });

  test.for(["", "1.2.3", "host", "fe80::1%eth0", "1.2.3.4.5"])("%j is none", (given) => {
    expect(() => addressBytes(given)).toThrow("Not an Internet address");
  });

  test("ranges overlap where they share an address", () => {
    const overlaps = (a: string, b: string) => overlap(parseRange(a), parseRange(b));
    expect(overlaps("10.0.0.0/8", "10.231.4.0/24")).toBe(true);
    expect(overlaps("10.231.5.7", "10.231.5.0/24")).toBe(true);
    expect(overlaps("10.231.5.0/24", "10.231.6.0/24")).toBe(false);
    expect(overlaps("::/0", "10.231.6.0/24")).toBe(false);
    expect(overlaps("fd00::/8", "fd12:3456::/64")).toBe(true);
  });

  test("loopback is everything that means this host", () => {
    for (const address of ["127.0.0.53", "0.0.0.0", "::1", "::"]) expect(isLoopback(address)).toBe(true);
    for (const address of ["128.0.0.1", "fe80::1"]) expect(isLoopback(address)).toBe(false);
  });
});

describe("blockedElements", () => {
  /** Whether an address is between a first key and the key behind the last. */
  function blocks(address: string, privateRanges: boolean): boolean {
    const bytes = addressBytes(address);
    const elements = blockedElements(bytes.length === 4 ? 4 : 6, { privateRanges, subnets: ["10.231.0.0/24"] });
    return (
      elements.filter(({ key }) => Buffer.compare(key, bytes) <= 0).at(-1)?.intervalEnd === undefined &&
      elements.some(({ key }) => Buffer.compare(key, bytes) <= 0)
    );
  }

  test.for([
    "169.254.169.254",
    "127.0.0.1",
    "0.0.0.0",
    "224.0.0.251",
    "255.255.255.255",
    "10.231.0.9",
    "::1",
    "fe80::1",
    "ff02::fb",
    "fd00:ec2::254",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
  ])("%s is always blocked", (address) => {
    expect(blocks(address, false)).toBe(true);
    expect(blocks(address, true)).toBe(true);
  });

  test.for(["10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "fd12::1"])("%s is by option", (address) => {
    expect(blocks(address, false)).toBe(false);
    expect(blocks(address, true)).toBe(true);
  });

  test.for(["1.1.1.1", "9.255.255.255", "172.32.0.0", "192.169.0.0", "2606:4700::1111", "64:ff9b::808:808"])(
    "%s never is",
    (address) => expect(blocks(address, true)).toBe(false),
  );

  test("its intervals are in order and apart from each other", () => {
    for (const family of [4, 6] as const) {
      const elements = blockedElements(family, { privateRanges: true, subnets: [] });
      const keys = elements.map(({ key }) => addressText(key));
      expect(
        elements
          .map(({ key }) => Buffer.from(key))
          .toSorted((a, b) => Buffer.compare(a, b))
          .map(addressText),
      ).toEqual(keys);
      expect(new Set(keys).size).toBe(keys.length);
    }
    expect(numberBytes(1n, 4)).toEqual(Buffer.from([0, 0, 0, 1]));
  });
});
