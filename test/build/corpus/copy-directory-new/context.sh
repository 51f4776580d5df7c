mkdir -p closed/sub
chmod 700 closed
chmod 750 closed/sub
echo x > closed/file
chmod 600 closed/file
