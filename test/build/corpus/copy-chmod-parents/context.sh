echo x > file
mkdir dir
chmod 755 dir
echo y > dir/file
