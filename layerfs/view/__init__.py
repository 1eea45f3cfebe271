"""What a registry looks like as a tree of directories and files. Knows inodes and handles, but no FUSE."""
