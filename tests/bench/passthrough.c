/*
 * The peer in C that the benchmarks compare with: the least that a libfuse low-level server needs to serve a directory
 * tree read-only. Multi-threaded, splices data from the file to /dev/fuse, keeps the page cache and attributes for an
 * hour. An inode is a path below the source (no descriptor: there can be more inodes than a process may open files),
 * found by its hash.
 *
 *     passthrough SOURCE MOUNTPOINT
 */
#define FUSE_USE_VERSION 312
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse_lowlevel.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUCKETS 65536
#define TIMEOUT 3600.0

struct inode {
    struct inode *next;
    uint64_t lookups;
    unsigned bucket;
    char path[];
};

static int source;
static struct inode *root, *table[BUCKETS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct inode *inode_of(fuse_ino_t ino) { return ino == FUSE_ROOT_ID ? root : (struct inode *)(uintptr_t)ino; }

static struct inode *make_inode(const char *path, unsigned bucket)
{
    struct inode *inode = calloc(1, sizeof *inode + strlen(path) + 1);
    strcpy(inode->path, path);
    inode->bucket = bucket;
    return inode;
}

static unsigned bucket_of(const char *path)
{
    unsigned hash = 5381;
    while (*path)
        hash = hash * 33 + (unsigned char)*path++;
    return hash % BUCKETS;
}

static int find(struct inode *parent, const char *name, struct fuse_entry_param *entry)
{
    char path[PATH_MAX];
    memset(entry, 0, sizeof *entry);
    if (snprintf(path, sizeof path, "%s/%s", parent->path, name) >= (int)sizeof path)
        return ENAMETOOLONG;
    if (fstatat(source, path, &entry->attr, AT_SYMLINK_NOFOLLOW) < 0)
        return errno;
    unsigned bucket = bucket_of(path);
    pthread_mutex_lock(&lock);
    struct inode *inode = table[bucket];
    while (inode && strcmp(inode->path, path))
        inode = inode->next;
    if (!inode) {
        inode = make_inode(path, bucket);
        inode->next = table[bucket];
        table[bucket] = inode;
    }
    inode->lookups++;
    pthread_mutex_unlock(&lock);
    entry->ino = (uintptr_t)inode;
    entry->attr_timeout = entry->entry_timeout = TIMEOUT;
    return 0;
}

static void drop(fuse_ino_t ino, uint64_t lookups)
{
    struct inode *inode = inode_of(ino), **place;
    if (inode == root)
        return;
    pthread_mutex_lock(&lock);
    inode->lookups -= lookups;
    if (!inode->lookups) {
        for (place = &table[inode->bucket]; *place != inode; place = &(*place)->next)
            ;
        *place = inode->next;
        free(inode);
    }
    pthread_mutex_unlock(&lock);
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry;
    int error = find(inode_of(parent), name, &entry);
    if (error)
        fuse_reply_err(req, error);
    else
        fuse_reply_entry(req, &entry);
}

static void do_forget(fuse_req_t req, fuse_ino_t ino, uint64_t lookups)
{
    drop(ino, lookups);
    fuse_reply_none(req);
}

static void do_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++)
        drop(forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(req);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info)
{
    (void)info;
    struct stat status;
    if (fstatat(source, inode_of(ino)->path, &status, AT_SYMLINK_NOFOLLOW) < 0)
        fuse_reply_err(req, errno);
    else
        fuse_reply_attr(req, &status, TIMEOUT);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info)
{
    int fd = openat(source, inode_of(ino)->path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        fuse_reply_err(req, errno);
        return;
    }
    info->fh = fd;
    info->keep_cache = 1;
    fuse_reply_open(req, info);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *info)
{
    (void)ino;
    struct fuse_bufvec data = FUSE_BUFVEC_INIT(size);
    data.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
    data.buf[0].fd = info->fh;
    data.buf[0].pos = offset;
    fuse_reply_data(req, &data, FUSE_BUF_SPLICE_MOVE);
}

static void do_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info)
{
    (void)ino;
    close(info->fh);
    fuse_reply_err(req, 0);
}

static void do_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info)
{
    int fd = openat(source, inode_of(ino)->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory) {
        fuse_reply_err(req, errno);
        return;
    }
    info->fh = (uintptr_t)directory;
    fuse_reply_open(req, info);
}

static void list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *info, int plus)
{
    DIR *directory = (DIR *)(uintptr_t)info->fh;
    char *buffer = malloc(size);
    size_t used = 0;
    struct dirent *found;
    if (telldir(directory) != offset)
        seekdir(directory, offset);
    while ((found = readdir(directory))) {
        struct fuse_entry_param entry = {.attr = {.st_ino = found->d_ino, .st_mode = (mode_t)found->d_type << 12}};
        int dots = !strcmp(found->d_name, ".") || !strcmp(found->d_name, "..");
        if (plus && !dots && find(inode_of(ino), found->d_name, &entry))
            continue;
        size_t needed = plus ? fuse_add_direntry_plus(req, buffer + used, size - used, found->d_name, &entry, found->d_off)
                             : fuse_add_direntry(req, buffer + used, size - used, found->d_name, &entry.attr, found->d_off);
        if (needed > size - used) {
            if (entry.ino)
                drop(entry.ino, 1);
            break;
        }
        used += needed;
        offset = found->d_off;
    }
    seekdir(directory, offset);
    fuse_reply_buf(req, buffer, used);
    free(buffer);
}

static void do_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *info)
{
    list(req, ino, size, offset, info, 0);
}

static void do_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *info)
{
    list(req, ino, size, offset, info, 1);
}

static void do_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info)
{
    (void)ino;
    closedir((DIR *)(uintptr_t)info->fh);
    fuse_reply_err(req, 0);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = do_lookup,         .forget = do_forget,           .forget_multi = do_forget_multi,
    .getattr = do_getattr,       .open = do_open,               .read = do_read,
    .release = do_release,       .opendir = do_opendir,         .readdir = do_readdir,
    .readdirplus = do_readdirplus, .releasedir = do_releasedir,
};

int main(int argc, char **argv)
{
    if (argc != 3)
        return fputs("usage: passthrough SOURCE MOUNTPOINT\n", stderr), 2;
    source = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (source < 0)
        return perror(argv[1]), 1;
    root = make_inode(".", 0);
    char *arguments[] = {argv[0], "-o", "ro,fsname=passthrough"};
    struct fuse_args args = FUSE_ARGS_INIT(3, arguments);
    struct fuse_session *session = fuse_session_new(&args, &operations, sizeof operations, NULL);
    if (!session || fuse_set_signal_handlers(session) || fuse_session_mount(session, argv[2]))
        return 1;
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    int result = fuse_session_loop_mt(session, config);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return result ? 1 : 0;
}
