/* Disks that fail: loaded with LD_PRELOAD, every call that touches a file under a dead directory answers EIO.
 *
 * OBJSTORE_DEAD_DISKS names a file of 4,096 bytes, mapped shared: the dead directories, each ended by a zero byte, the list
 * by an empty one. A test writes it, and all processes see it with their next call; what is in their page cache stays
 * readable through mmap, as it does when a real disk dies.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const volatile char *dead;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("OBJSTORE_DEAD_DISKS");
    if (!name) return;
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int fd = real(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    void *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED) dead = map;
    close(fd);
}

static int under(const char *path) {
    if (!dead || !dead[0] || !path) return 0;
    for (const volatile char *prefix = dead; *prefix; prefix += strlen((const char *)prefix) + 1) {
        size_t size = strlen((const char *)prefix);
        if (!strncmp(path, (const char *)prefix, size) && (path[size] == '/' || !path[size])) return 1;
    }
    return 0;
}

static int fd_is_dead(int fd) {
    if (!dead || !dead[0]) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return under(path);
}

static int path_is_dead(int at, const char *path) {
    if (!dead || !dead[0] || !path) return 0;
    if (path[0] == '/') return under(path);
    if (at != AT_FDCWD) return fd_is_dead(at);
    return 0;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = dlsym(RTLD_NEXT, #name)
#define FAIL do { errno = EIO; return -1; } while (0)

#define ON_FD(type, name, parameters, arguments) \
    type name parameters { REAL(name); if (fd_is_dead(fd)) FAIL; return real arguments; }
#define ON_PATH(name, parameters, arguments) \
    int name parameters { REAL(name); if (path_is_dead(AT_FDCWD, path)) FAIL; return real arguments; }

ON_FD(ssize_t, read, (int fd, void *b, size_t n), (fd, b, n))
ON_FD(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n))
ON_FD(ssize_t, readv, (int fd, const struct iovec *v, int n), (fd, v, n))
ON_FD(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n))
ON_FD(ssize_t, pread, (int fd, void *b, size_t n, off_t o), (fd, b, n, o))
ON_FD(ssize_t, pread64, (int fd, void *b, size_t n, off64_t o), (fd, b, n, o))
ON_FD(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o))
ON_FD(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o))
ON_FD(ssize_t, preadv, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o))
ON_FD(ssize_t, preadv64, (int fd, const struct iovec *v, int n, off64_t o), (fd, v, n, o))
ON_FD(ssize_t, pwritev, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o))
ON_FD(ssize_t, pwritev64, (int fd, const struct iovec *v, int n, off64_t o), (fd, v, n, o))
ON_FD(ssize_t, preadv2, (int fd, const struct iovec *v, int n, off_t o, int f), (fd, v, n, o, f))
ON_FD(ssize_t, preadv64v2, (int fd, const struct iovec *v, int n, off64_t o, int f), (fd, v, n, o, f))
ON_FD(ssize_t, pwritev2, (int fd, const struct iovec *v, int n, off_t o, int f), (fd, v, n, o, f))
ON_FD(ssize_t, pwritev64v2, (int fd, const struct iovec *v, int n, off64_t o, int f), (fd, v, n, o, f))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))
ON_FD(int, sync_file_range, (int fd, off64_t o, off64_t n, unsigned f), (fd, o, n, f))
ON_FD(int, ftruncate, (int fd, off_t n), (fd, n))
ON_FD(int, ftruncate64, (int fd, off64_t n), (fd, n))
ON_FD(int, fallocate, (int fd, int m, off_t o, off_t n), (fd, m, o, n))
ON_FD(int, fallocate64, (int fd, int m, off64_t o, off64_t n), (fd, m, o, n))
ON_PATH(mkdir, (const char *path, mode_t m), (path, m))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(rmdir, (const char *path), (path))
ON_PATH(rename, (const char *path, const char *to), (path, to))
ON_PATH(stat, (const char *path, struct stat *s), (path, s))
ON_PATH(stat64, (const char *path, struct stat64 *s), (path, s))
ON_PATH(lstat, (const char *path, struct stat *s), (path, s))
ON_PATH(lstat64, (const char *path, struct stat64 *s), (path, s))

int unlinkat(int at, const char *path, int flags) {
    REAL(unlinkat);
    if (path_is_dead(at, path)) FAIL;
    return real(at, path, flags);
}

int mkdirat(int at, const char *path, mode_t mode) {
    REAL(mkdirat);
    if (path_is_dead(at, path)) FAIL;
    return real(at, path, mode);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    REAL(renameat);
    if (path_is_dead(from_at, from) || path_is_dead(to_at, to)) FAIL;
    return real(from_at, from, to_at, to);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (path_is_dead(AT_FDCWD, path)) FAIL; \
        return real(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (path_is_dead(at, path)) FAIL; \
        return real(at, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
