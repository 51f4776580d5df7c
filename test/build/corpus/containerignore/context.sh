mkdir dir
echo x > kept
echo x > hidden
echo x > dir/hidden.o
echo "*" > .dockerignore
printf "hidden\n**/*.o\n" > .containerignore
chmod 644 .dockerignore .containerignore kept Dockerfile
