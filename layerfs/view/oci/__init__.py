"""`_oci`: a repository as an OCI image layout that clients read and write without knowing that it is none on disk.

layout     the directory itself, its fixed files, and the layouts of single tags
index      `index.json`: what is shown, what each client has read, and what it meant by what it wrote
blobs      `blobs/<algorithm>/<hex>`: layers, manifests, and manifests that no index names yet
scratch    temporary files and directories, which every client makes in its own way
state      what a mount remembers of a repository's layout between calls
"""
