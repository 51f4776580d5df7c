#!/bin/sh
echo "hello from commit $COMMIT, as user $(id -u)"
