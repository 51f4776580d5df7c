mkdir t; echo a > t/a
# Kept as it is in one place, so its bytes must be the same each time.
tar -C t --owner=0 --group=0 --mtime=@0 -cf - a | gzip -n > packed.tar.gz; tar -C t --owner=0 --group=0 -cf - a | zstd -q > zstd.tar.zst; rm -r t
