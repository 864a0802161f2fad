/* What a store does to its files, recorded in order; and failures where a test wants them.
 *
 * Loaded with LD_PRELOAD into every process of a store. Calls that change files below one directory are
 * passed on and then appended to a log, each record with one write(2) to an O_APPEND file, so that the log is
 * one order for all threads and processes: a call that began after another had returned stands behind it.
 * tests/crash/recorder.py reads the log and sets the control block.
 *
 * Environment (nothing is done unless both are set):
 *   CRASH_ROOT      absolute directory; only files below it matter
 *   CRASH_CONTROL   a file of sizeof(struct control) bytes, mapped shared
 *   CRASH_LOG       the log; without it nothing is recorded, failures still work
 *
 * Log record: struct record, path, second path (rename, link), data (writes). Native byte order: it is read
 * on the machine that wrote it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE = 1, SYNC = 2, CUT = 3, CREATE = 4, RENAME = 5, UNLINK = 6, MKDIR = 7, RMDIR = 8, LINK = 9 };

struct record {
    uint32_t magic;   /* 0x31524352 */
    uint32_t kind;
    uint64_t position; /* WRITE: where; CUT: the new size; CREATE: 1 if O_TRUNC */
    uint64_t size;     /* bytes of data that follow the paths */
    uint32_t path_size;
    uint32_t other_size;
    uint32_t synced;   /* WRITE with RWF_DSYNC or RWF_SYNC */
    uint32_t pid;
};

struct control {
    _Atomic uint32_t armed;  /* failures happen only while this is not 0 */
    uint32_t kinds;          /* bit (1 << kind) of the calls that count */
    _Atomic uint64_t count;  /* matching calls so far, over all processes */
    uint64_t first, last;    /* fail the calls numbered first to last, counted from 1 */
    int32_t number;          /* errno */
    uint32_t before;         /* 1: fail without doing it; 0: do it, then fail */
    char substring[256];     /* only paths that contain this; empty: all */
    _Atomic uint64_t failed; /* how many failures were returned */
    char last_path[512];     /* of the last failure */
};

static char root[PATH_MAX];
static size_t root_size;
static int log_fd = -1;
static struct control *control;

/* Looked up at the first use: other libraries' constructors may call before ours have run. */
#define REAL(result, name, ...) static result (*real_##name)(__VA_ARGS__);
#define real(name) ((__typeof__(real_##name))found((void **)&real_##name, #name))
static void *found(void **place, const char *name) {
    if (!*place && !(*place = dlsym(RTLD_NEXT, name))) abort();
    return *place;
}
#define HAS_MODE(flags) (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE)

REAL(int, openat, int, const char *, int, ...)
REAL(ssize_t, write, int, const void *, size_t)
REAL(ssize_t, writev, int, const struct iovec *, int)
REAL(ssize_t, pwritev2, int, const struct iovec *, int, off_t, int)
REAL(int, fdatasync, int)
REAL(int, fsync, int)
REAL(int, ftruncate, int, off_t)
REAL(int, truncate, const char *, off_t)
REAL(int, renameat2, int, const char *, int, const char *, unsigned)
REAL(int, unlinkat, int, const char *, int)
REAL(int, mkdirat, int, const char *, mode_t)
REAL(int, linkat, int, const char *, int, const char *, int)
REAL(ssize_t, sendfile, int, int, off_t *, size_t)
REAL(ssize_t, copy_file_range, int, off_t *, int, off_t *, size_t, unsigned)

__attribute__((constructor)) static void start(void) {
    const char *at = getenv("CRASH_ROOT"), *log = getenv("CRASH_LOG"), *block = getenv("CRASH_CONTROL");
    if (!at || !block) return;
    int fd = syscall(SYS_openat, AT_FDCWD, block, O_RDWR | O_CLOEXEC);
    if (fd < 0) abort();
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (control == MAP_FAILED) abort();
    syscall(SYS_close, fd);
    if (log) {
        log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CLOEXEC);
        if (log_fd < 0) abort();
        /* Out of the way of whoever closes all low descriptors. */
        int high = fcntl(log_fd, F_DUPFD_CLOEXEC, 900);
        if (high >= 0) { syscall(SYS_close, log_fd); log_fd = high; }
    }
    snprintf(root, sizeof root, "%s", at);
    root_size = strlen(root);
}

static int inside(const char *path) {
    return root_size && !strncmp(path, root, root_size) && (path[root_size] == '/' || !path[root_size]);
}

/* The path of an open file below the root; 0 if it is elsewhere or has no name any more. */
static int path_of(int fd, char *path) {
    char link[64];
    if (!root_size || fd < 0 || fd == log_fd) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    static const char gone[] = " (deleted)";
    if ((size_t)size >= sizeof gone && !strcmp(path + size - (sizeof gone - 1), gone)) return 0;
    return inside(path);
}

/* An absolute path from a name relative to a directory. Names with .. or links in them do not occur here. */
static int path_at(int dir, const char *name, char *path) {
    if (!root_size || !name) return 0;
    if (name[0] == '/') {
        if (strlen(name) >= PATH_MAX) return 0;
        strcpy(path, name);
    } else {
        char base[PATH_MAX], link[64];
        if (dir == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
            ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
            if (size <= 0) return 0;
            base[size] = 0;
        }
        if (strlen(base) + strlen(name) + 2 > PATH_MAX) return 0;
        strcpy(path, base);
        strcat(path, "/");
        strcat(path, name);
    }
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') path[--end] = 0;
    return inside(path);
}

/* Is this call to fail? Returns its errno, or 0. */
static int fails(enum kind kind, const char *path) {
    if (!control || !atomic_load(&control->armed) || !(control->kinds & (1u << kind))) return 0;
    if (control->substring[0] && !strstr(path, control->substring)) return 0;
    uint64_t number = atomic_fetch_add(&control->count, 1) + 1;
    if (number < control->first || number > control->last) return 0;
    atomic_fetch_add(&control->failed, 1);
    snprintf(control->last_path, sizeof control->last_path, "%s", path);
    return control->number;
}

static void note(enum kind kind, const char *path, const char *other, uint64_t position, uint32_t synced,
                 const struct iovec *parts, int count, size_t size) {
    if (log_fd < 0) return;
    int saved = errno;
    struct record head = {
        .magic = 0x31524352, .kind = kind, .position = position, .size = size,
        .path_size = strlen(path), .other_size = other ? strlen(other) : 0, .synced = synced,
        .pid = (uint32_t)getpid(),
    };
    size_t total = sizeof head + head.path_size + head.other_size + size;
    char *all = malloc(total), *at = all;
    if (!all) abort();
    memcpy(at, &head, sizeof head), at += sizeof head;
    memcpy(at, path, head.path_size), at += head.path_size;
    if (other) memcpy(at, other, head.other_size), at += head.other_size;
    for (int index = 0; index < count && size; index++) {
        size_t piece = parts[index].iov_len < size ? parts[index].iov_len : size;
        memcpy(at, parts[index].iov_base, piece);
        at += piece, size -= piece;
    }
    if (syscall(SYS_write, log_fd, all, total) != (ssize_t)total) abort();
    free(all);
    errno = saved;
}

/* The frame of every call: find the path, perhaps fail, do it, note it. */
#define FAIL_BEFORE(kind, path) \
    int number = fails(kind, path); \
    if (number && control->before) { errno = number; return -1; }
#define FAIL_AFTER() \
    if (number) { errno = number; return -1; }

static int note_open(int fd, const char *path, int flags) {
    if (fd >= 0 && (flags & (O_CREAT | O_TRUNC)) && (flags & O_TMPFILE) != O_TMPFILE)
        note(CREATE, path, NULL, !!(flags & O_TRUNC), 0, NULL, 0, 0);
    return fd;
}

int openat(int dir, const char *name, int flags, ...) {
    mode_t mode = 0;
    if (HAS_MODE(flags)) {
        va_list list;
        va_start(list, flags);
        mode = va_arg(list, mode_t);
        va_end(list);
    }
    char path[PATH_MAX];
    if (!(flags & (O_CREAT | O_TRUNC)) || !path_at(dir, name, path)) return real(openat)(dir, name, flags, mode);
    if (!(flags & O_TRUNC) && !syscall(SYS_faccessat, dir, name, F_OK)) /* Opens what is there: makes nothing. */
        return real(openat)(dir, name, flags, mode);
    FAIL_BEFORE(CREATE, path)
    int fd = note_open(real(openat)(dir, name, flags, mode), path, flags);
    if (number && fd >= 0) syscall(SYS_close, fd);
    FAIL_AFTER()
    return fd;
}
int open(const char *name, int flags, ...) {
    mode_t mode = 0;
    if (HAS_MODE(flags)) {
        va_list list;
        va_start(list, flags);
        mode = va_arg(list, mode_t);
        va_end(list);
    }
    return openat(AT_FDCWD, name, flags, mode);
}
int open64(const char *name, int flags, ...) {
    mode_t mode = 0;
    if (HAS_MODE(flags)) {
        va_list list;
        va_start(list, flags);
        mode = va_arg(list, mode_t);
        va_end(list);
    }
    return openat(AT_FDCWD, name, flags | O_LARGEFILE, mode);
}
int openat64(int dir, const char *name, int flags, ...) {
    mode_t mode = 0;
    if (HAS_MODE(flags)) {
        va_list list;
        va_start(list, flags);
        mode = va_arg(list, mode_t);
        va_end(list);
    }
    return openat(dir, name, flags | O_LARGEFILE, mode);
}
int creat(const char *name, mode_t mode) { return openat(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return creat(name, mode); }

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(pwritev2)(fd, parts, count, at, flags);
    int synced = !!(flags & (RWF_DSYNC | RWF_SYNC));
    FAIL_BEFORE(WRITE, path)
    if (!number && synced) {
        number = fails(SYNC, path);
        if (number && control->before) { errno = number; return -1; }
    }
    ssize_t size = real(pwritev2)(fd, parts, count, at, flags);
    if (size > 0) note(WRITE, path, NULL, at, synced, parts, count, size);
    FAIL_AFTER()
    return size;
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    return pwritev2(fd, parts, count, at, flags);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    return pwritev2(fd, parts, count, at, 0);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at) {
    return pwritev2(fd, parts, count, at, 0);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    struct iovec part = {(void *)data, size};
    return pwritev2(fd, &part, 1, at, 0);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return pwrite(fd, data, size, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(writev)(fd, parts, count);
    FAIL_BEFORE(WRITE, path)
    ssize_t size = real(writev)(fd, parts, count);
    if (size > 0) note(WRITE, path, NULL, lseek(fd, 0, SEEK_CUR) - size, 0, parts, count, size);
    FAIL_AFTER()
    return size;
}
ssize_t write(int fd, const void *data, size_t size) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(write)(fd, data, size);
    struct iovec part = {(void *)data, size};
    return writev(fd, &part, 1);
}

static int synced(int fd, int (*call)(int)) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return call(fd);
    FAIL_BEFORE(SYNC, path)
    int result = call(fd);
    if (!result) note(SYNC, path, NULL, 0, 0, NULL, 0, 0);
    FAIL_AFTER()
    return result;
}
int fdatasync(int fd) { return synced(fd, real(fdatasync)); }
int fsync(int fd) { return synced(fd, real(fsync)); }

int ftruncate(int fd, off_t size) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(ftruncate)(fd, size);
    FAIL_BEFORE(CUT, path)
    int result = real(ftruncate)(fd, size);
    if (!result) note(CUT, path, NULL, size, 0, NULL, 0, 0);
    FAIL_AFTER()
    return result;
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
int truncate(const char *name, off_t size) {
    char path[PATH_MAX];
    if (!path_at(AT_FDCWD, name, path)) return real(truncate)(name, size);
    FAIL_BEFORE(CUT, path)
    int result = real(truncate)(name, size);
    if (!result) note(CUT, path, NULL, size, 0, NULL, 0, 0);
    FAIL_AFTER()
    return result;
}
int truncate64(const char *name, off_t size) { return truncate(name, size); }

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char path[PATH_MAX], other[PATH_MAX];
    int a = path_at(from_dir, from, path), b = path_at(to_dir, to, other);
    if (!a || !b) return real(renameat2)(from_dir, from, to_dir, to, flags);
    FAIL_BEFORE(RENAME, other)
    int result = real(renameat2)(from_dir, from, to_dir, to, flags);
    if (!result) note(RENAME, path, other, 0, 0, NULL, 0, 0);
    FAIL_AFTER()
    return result;
}
int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return renameat2(from_dir, from, to_dir, to, 0);
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *name, int flags) {
    char path[PATH_MAX];
    if (!path_at(dir, name, path)) return real(unlinkat)(dir, name, flags);
    enum kind kind = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
    FAIL_BEFORE(kind, path)
    int result = real(unlinkat)(dir, name, flags);
    if (!result) note(kind, path, NULL, 0, 0, NULL, 0, 0);
    FAIL_AFTER()
    return result;
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int dir, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!path_at(dir, name, path)) return real(mkdirat)(dir, name, mode);
    FAIL_BEFORE(MKDIR, path)
    int result = real(mkdirat)(dir, name, mode);
    if (!result) note(MKDIR, path, NULL, 0, 0, NULL, 0, 0);
    FAIL_AFTER()
    return result;
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    char path[PATH_MAX], other[PATH_MAX];
    int a = path_at(from_dir, from, path), b = path_at(to_dir, to, other);
    if (!a || !b) return real(linkat)(from_dir, from, to_dir, to, flags);
    FAIL_BEFORE(LINK, other)
    int result = real(linkat)(from_dir, from, to_dir, to, flags);
    if (!result) note(LINK, path, other, 0, 0, NULL, 0, 0);
    FAIL_AFTER()
    return result;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

/* Copies inside the kernel would pass unseen: their callers all know how to copy without. */
ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    char path[PATH_MAX];
    if (path_of(to, path)) { errno = EINVAL; return -1; }
    return real(sendfile)(to, from, at, size);
}
ssize_t sendfile64(int to, int from, off_t *at, size_t size) { return sendfile(to, from, at, size); }
ssize_t copy_file_range(int from, off_t *from_at, int to, off_t *to_at, size_t size, unsigned flags) {
    char path[PATH_MAX];
    if (path_of(to, path)) { errno = EXDEV; return -1; }
    return real(copy_file_range)(from, from_at, to, to_at, size, flags);
}
