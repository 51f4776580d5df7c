import { describe, expect, test } from "vitest";
import { AccountError, resolveOwner, resolveUser } from "../../runtime/accounts.ts";
import { ModeError, parseMode } from "../../build/mode.ts";

const accounts = {
  passwd:
    "root:x:0:0::/root:/bin/sh\n# comment\nbroken\napp:x:1000:1001:App:/home/app:/bin/sh\nweb:x:33:33::/var/www:\nhuge:x:99999999999:1::/:\n",
  group: "root:x:0:\nstaff:x:50:app,web\nwheel:x:10:app\napp:x:1001:\n123:x:7:\n",
};

describe("resolveUser", () => {
  test.for([
    ["", { uid: 0, gid: 0, additionalGids: [0], home: "/root" }],
    ["app", { uid: 1000, gid: 1001, additionalGids: [10, 50, 1001], home: "/home/app" }],
    ["1000", { uid: 1000, gid: 1001, additionalGids: [10, 50, 1001], home: "/home/app" }],
    ["app:staff", { uid: 1000, gid: 50, additionalGids: [50], home: "/home/app" }],
    ["app:77", { uid: 1000, gid: 77, additionalGids: [77] }],
    ["5000", { uid: 5000, gid: 0, additionalGids: [0], home: "/" }],
    ["5000:123", { uid: 5000, gid: 7 }],
    [":staff", { uid: 0, gid: 50 }],
  ] as const)("finds %s", ([text, expected]) => {
    expect(resolveUser(text, accounts)).toMatchObject(expected);
  });

  test.for(["nobody", "app:nobody", "huge", "4294967295", "1:99999999999"])("refuses %s", (text) => {
    expect(() => resolveUser(text, accounts)).toThrow(AccountError);
  });

  test("needs no files for numbers", () => {
    expect(resolveUser("12:34", { passwd: "", group: "" })).toMatchObject({ uid: 12, gid: 34, home: "/" });
    expect(() => resolveUser("app", { passwd: "", group: "" })).toThrow('no user "app" in /etc/passwd');
  });
});

describe("resolveOwner", () => {
  test.for([
    ["app", { uid: 1000, gid: 1001 }],
    ["1000", { uid: 1000, gid: 1000 }],
    ["web:app", { uid: 33, gid: 1001 }],
    ["web:5", { uid: 33, gid: 5 }],
    [":staff", { uid: 0, gid: 50 }],
  ] as const)("finds %s", ([text, expected]) => {
    expect(resolveOwner(text, accounts)).toEqual(expected);
  });
});

describe("parseMode", () => {
  test.for([
    ["755", 0o644, false, 0o755],
    ["4711", 0o0, false, 0o4711],
    ["+x", 0o640, false, 0o751],
    ["u=rwX,go=rX", 0o600, false, 0o644],
    ["u=rwX,go=rX", 0o600, true, 0o755],
    ["a-w", 0o777, false, 0o555],
    ["g=u", 0o640, false, 0o660],
    ["o=g-w", 0o660, false, 0o664],
    ["u+s,g+s,+t", 0o755, false, 0o7755],
    ["u=rx", 0o4755, false, 0o555],
    ["u=rx", 0o4755, true, 0o4555],
    ["go=", 0o777, false, 0o700],
    ["u+rw-x", 0o100, false, 0o600],
    ["ug=rw", 0o000, false, 0o660],
  ] as const)("%s of %o", ([text, mode, isDirectory, expected]) => {
    expect(parseMode(text).apply(mode, isDirectory).toString(8)).toBe(expected.toString(8));
  });

  test.for(["", "8", "77777", "0o755", "rwx", "u", "u=z", "u+r,", "=,=x?", "1".repeat(300)])("refuses %s", (text) => {
    expect(() => parseMode(text)).toThrow(ModeError);
  });
});
