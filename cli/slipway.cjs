#!/usr/bin/env node
"use strict";
// The `slipway` command. CommonJS and old syntax on purpose: see node-version.cjs.

var nodeVersion = require("./node-version.cjs");

if (nodeVersion.isNewEnough()) {
  require("./start.cjs");
} else {
  nodeVersion.become(nodeVersion.findNode(), [__filename].concat(process.argv.slice(2)));
}
