"use strict";
// Finds a Node that can run this project and hands over to it. Written in the JavaScript of Node 8, because whatever Node
// the machine has comes through here first and must get one clear line, never a syntax error.

var childProcess = require("child_process");
var fs = require("fs");
var path = require("path");

var root = path.resolve(__dirname, "..");
var oldest = 24;

function isNewEnough() {
  return parseInt(process.versions.node, 10) >= oldest;
}

/** The Node that npm installed for us, or undefined. Looks upwards: installed as a package, it lies beside us. */
function bundledNode() {
  for (var dir = root; ; dir = path.dirname(dir)) {
    var candidate = path.join(dir, "node_modules", "node-linux-" + process.arch, "bin", "node");
    if (fs.existsSync(candidate)) return candidate;
    if (dir === path.dirname(dir)) return undefined;
  }
}

function fail(message) {
  process.stderr.write("slipway: " + message + "\n");
  process.exit(125);
}

/** Why the program does not start (its loader's words), or undefined if it does. */
function whyBroken(node) {
  var result = childProcess.spawnSync(node, ["--version"], { encoding: "utf8" });
  if (result.status === 0) return undefined;
  return result.error ? result.error.message : result.stderr.trim().split("\n").pop();
}

/**
 * The Node to use: this one if it is new enough, else the bundled one, else one line and exit 125.
 *
 * @param mend Called with the bundled Node if it does not start; may install what it lacks.
 */
function findNode(mend) {
  if (isNewEnough()) return process.execPath;
  var node = bundledNode();
  if (node === undefined) {
    return fail(
      "Cannot start on Node " +
        process.versions.node +
        ": Node " +
        oldest +
        " or newer is needed; run `npm ci` in " +
        root +
        " (it brings one along) or install it from https://nodejs.org",
    );
  }
  return startable(node, mend);
}

/** The same Node if it starts, else one line and exit 125. @param mend As above. */
function startable(node, mend) {
  var reason = whyBroken(node);
  if (reason !== undefined && mend !== undefined) {
    mend(reason);
    reason = whyBroken(node);
  }
  if (reason === undefined) return node;
  return fail(
    "Cannot start the Node that npm has installed: " +
      reason +
      (/libatomic/.test(reason) ? "; install libatomic (Debian, Ubuntu: apt-get install libatomic1)" : ""),
  );
}

/** Runs a program in our place: same terminal, signals passed on, its exit code (or the signal it died of) becomes ours. */
function become(program, args) {
  var child;
  // Ctrl-C on a terminal reaches the child already, as part of the foreground process group; passing it on would count twice.
  var hasTerminal = process.stdin.isTTY || process.stdout.isTTY || process.stderr.isTTY;
  // Before the child exists, so that no signal takes only us.
  ["SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR2"].forEach(function (name) {
    process.on(name, function () {
      if (!(hasTerminal && (name === "SIGINT" || name === "SIGQUIT"))) child.kill(name);
    });
  });
  child = childProcess.spawn(program, args, { stdio: "inherit" });
  child.on("error", function (error) {
    fail("Cannot start " + program + ": " + error.message);
  });
  child.on("exit", function (code, signal) {
    if (signal === null) process.exit(code);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  });
}

module.exports = {
  become: become,
  fail: fail,
  findNode: findNode,
  isNewEnough: isNewEnough,
  root: root,
  startable: startable,
};
