/*
 * The guest's end of `cargo xtask soak`: writes, sends and checks bytes that look random and follow
 * from a number, the seed. xtask/src/soak/content.rs makes the same bytes.
 *
 * load write FILE OFFSET SEED LENGTH     writes them to a file or a disk, and waits until they last
 * load check FILE OFFSET SEED LENGTH     reads them again, from the disk
 * load send ADDRESS PORT SEED LENGTH     sends them to a server, which answers with others
 * load serve PORT                        is such a server
 * load sum SEED LENGTH                   prints a checksum of them
 * load clock                             prints the clocks in nanoseconds for each line of input; if that
 *                                        is a number, the wall clock is first put on by so many
 *
 * Offsets are multiples of BLOCK, lengths of 8. Exit status 1, with a line on standard error, if
 * anything is otherwise than it should be.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK ((size_t)65536)

static uint64_t expected[BLOCK / 8] __attribute__((aligned(4096)));
static uint64_t found[BLOCK / 8] __attribute__((aligned(4096)));

static void fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void differs(const char *where, uint64_t at)
{
    fprintf(stderr, "load: %s: other content from byte %llu on\n", where, (unsigned long long)at);
    exit(1);
}

static uint64_t number(const char *text)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno || *end || end == text) {
        fprintf(stderr, "load: %s is not a number\n", text);
        exit(2);
    }
    return value;
}

/* The word at an index, by the finalizer of splitmix64. */
static uint64_t word(uint64_t seed, uint64_t index)
{
    uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The bytes from `at` on, as many as there are in a block, or less at the end. */
static size_t fill(uint64_t seed, uint64_t at, uint64_t length)
{
    size_t count = length - at < BLOCK ? length - at : BLOCK;
    for (size_t i = 0; i < count / 8; i++)
        expected[i] = word(seed, at / 8 + i);
    return count;
}

static void put(int fd, const void *bytes, size_t count, const char *where)
{
    for (const char *from = bytes; count > 0;) {
        ssize_t done = write(fd, from, count);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            fail(where);
        from += done;
        count -= done;
    }
}

/* Reads `count` bytes; fewer at the end. */
static size_t get(int fd, void *bytes, size_t count, const char *where)
{
    size_t total = 0;
    while (total < count) {
        ssize_t done = read(fd, (char *)bytes + total, count - total);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            fail(where);
        if (done == 0)
            break;
        total += done;
    }
    return total;
}

static void put_all(int fd, uint64_t seed, uint64_t length, const char *where)
{
    for (uint64_t at = 0; at < length;) {
        size_t count = fill(seed, at, length);
        put(fd, expected, count, where);
        at += count;
    }
}

static void check_all(int fd, uint64_t seed, uint64_t length, const char *where)
{
    for (uint64_t at = 0; at < length;) {
        size_t count = fill(seed, at, length);
        size_t read = get(fd, found, count, where);
        if (read != count)
            differs(where, at + read);
        for (size_t i = 0; i < count / 8; i++)
            if (found[i] != expected[i])
                differs(where, at + i * 8);
        at += count;
    }
}

/* A file or a disk at an offset; disks are read and written without the page cache. */
static int at_offset(const char *path, int flags, uint64_t offset)
{
    struct stat found;
    if (stat(path, &found) == 0 && S_ISBLK(found.st_mode))
        flags |= O_DIRECT;
    else if ((flags & O_ACCMODE) != O_RDONLY)
        flags |= offset == 0 ? O_CREAT | O_TRUNC : O_CREAT;
    int fd = open(path, flags, 0600);
    if (fd < 0 || lseek(fd, offset, SEEK_SET) < 0)
        fail(path);
    return fd;
}

static void write_to(const char *path, uint64_t offset, uint64_t seed, uint64_t length)
{
    int fd = at_offset(path, O_WRONLY, offset);
    put_all(fd, seed, length, path);
    if (fsync(fd) != 0)
        fail(path);
    /* What is read later comes from the disk. */
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    if (close(fd) != 0)
        fail(path);
}

/* One connection, by whoever made it: it says what it sends, and is answered with the complement. */
static void send_to(const char *address, uint64_t port, uint64_t seed, uint64_t length)
{
    struct sockaddr_in peer = { .sin_family = AF_INET, .sin_port = htons(port) };
    if (inet_pton(AF_INET, address, &peer.sin_addr) != 1)
        fail(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&peer, sizeof peer) != 0)
        fail(address);
    uint64_t head[2] = { seed, length };
    put(fd, head, sizeof head, address);
    put_all(fd, seed, length, address);
    if (shutdown(fd, SHUT_WR) != 0)
        fail(address);
    check_all(fd, ~seed, length, address);
    if (get(fd, found, 1, address) != 0)
        differs(address, length);
    close(fd);
}

static void answer(int fd)
{
    static const char where[] = "a connection";
    uint64_t head[2];
    if (get(fd, head, sizeof head, where) != sizeof head)
        differs(where, 0);
    check_all(fd, head[0], head[1], where);
    if (get(fd, found, 1, where) != 0)
        differs(where, head[1]);
    put_all(fd, ~head[0], head[1], where);
    close(fd);
}

static void serve(uint64_t port)
{
    struct sockaddr_in own = { .sin_family = AF_INET, .sin_port = htons(port) };
    int yes = 1;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0
        || bind(fd, (struct sockaddr *)&own, sizeof own) != 0 || listen(fd, 16) != 0)
        fail("cannot listen");
    socklen_t length = sizeof own;
    if (getsockname(fd, (struct sockaddr *)&own, &length) != 0)
        fail("cannot listen");
    printf("%u\n", ntohs(own.sin_port));
    fflush(stdout);
    for (;;) {
        int peer = accept(fd, NULL, NULL);
        if (peer < 0)
            fail("cannot accept");
        answer(peer);
    }
}

static void sum(uint64_t seed, uint64_t length)
{
    uint64_t all = 0xcbf29ce484222325u;
    for (uint64_t i = 0; i < length / 8; i++)
        all = (all ^ word(seed, i)) * 0x100000001b3u;
    printf("%016llx\n", (unsigned long long)all);
}

static void tell_clocks(void)
{
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        struct timespec wall, steady;
        long long change = strtoll(line, NULL, 10);
        if (clock_gettime(CLOCK_REALTIME, &wall) != 0)
            fail("a clock");
        if (change != 0) {
            change += wall.tv_nsec;
            wall.tv_sec += change / 1000000000 - (change % 1000000000 < 0);
            wall.tv_nsec = (change % 1000000000 + 1000000000) % 1000000000;
            if (clock_settime(CLOCK_REALTIME, &wall) != 0)
                fail("the clock");
        }
        if (clock_gettime(CLOCK_MONOTONIC, &steady) != 0)
            fail("a clock");
        printf("%lld%09ld %lld%09ld\n", (long long)wall.tv_sec, wall.tv_nsec,
               (long long)steady.tv_sec, steady.tv_nsec);
        fflush(stdout);
    }
}

static int is(int argc, char **argv, const char *name, int arguments)
{
    return argc == arguments + 2 && strcmp(argv[1], name) == 0;
}

int main(int argc, char **argv)
{
    if (is(argc, argv, "write", 4)) {
        write_to(argv[2], number(argv[3]), number(argv[4]), number(argv[5]));
    } else if (is(argc, argv, "check", 4)) {
        int fd = at_offset(argv[2], O_RDONLY, number(argv[3]));
        check_all(fd, number(argv[4]), number(argv[5]), argv[2]);
    } else if (is(argc, argv, "send", 4)) {
        send_to(argv[2], number(argv[3]), number(argv[4]), number(argv[5]));
    } else if (is(argc, argv, "serve", 1)) {
        serve(number(argv[2]));
    } else if (is(argc, argv, "sum", 2)) {
        sum(number(argv[2]), number(argv[3]));
    } else if (is(argc, argv, "clock", 0)) {
        tell_clocks();
    } else {
        fprintf(stderr, "load: see the beginning of load.c\n");
        return 2;
    }
    return 0;
}
