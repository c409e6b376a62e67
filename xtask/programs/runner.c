// Runs the programs of /bench and times them: as the first process of a guest, or natively in a root
// of its own.
//
// usage: runner                 in a guest, which it powers off at the end
//        runner ROOT CPUS       natively, on that many of the host's processors
//
// The environment says what to run: PROGRAMS has the programs' names between commas, SCALE the amount
// of work in percent. (Linux gives what it does not know of its command line to the first process as
// environment.) Each program runs in a new, empty /tmp. The lines that are printed:
//
//   BOOT seconds                    the time since the kernel started; guests only
//   OUTPUT program text             a line of what the program printed
//   PROGRAM program seconds hash    how long it took, and the hash of its output
//   FAILED program status           instead of it, with the status of waitpid
//   DONE seconds                    the time since the kernel started
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char output[1 << 16];

static int need(int result, const char *what) {
    if (result < 0) {
        fprintf(stderr, "runner: %s: %s\n", what, strerror(errno));
        exit(1);
    }
    return result;
}

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void raise_loopback(void) {
    struct ifreq request = {.ifr_name = "lo"};
    int any = need(socket(AF_INET, SOCK_DGRAM, 0), "socket");
    need(ioctl(any, SIOCGIFFLAGS, &request), "SIOCGIFFLAGS");
    request.ifr_flags |= IFF_UP;
    need(ioctl(any, SIOCSIFFLAGS, &request), "SIOCSIFFLAGS");
    close(any);
}

static void mount_at(const char *what, const char *where, const char *type) {
    need(mount(what, where, type, 0, NULL), where);
}

// ---- A root of its own, on the host --------------------------------------------------------------

static void write_file(const char *path, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int file = need(open(path, O_WRONLY), path);
    need(vdprintf(file, format, arguments), path);
    close(file);
    va_end(arguments);
}

// Lets this user do what only root may, within namespaces of its own.
static void enter_namespaces(void) {
    int user = geteuid(), group = getegid();
    if (user != 0) {
        need(unshare(CLONE_NEWUSER), "a user namespace (run as root where the host does not grant it)");
        write_file("/proc/self/setgroups", "deny");
        write_file("/proc/self/uid_map", "0 %d 1", user);
        write_file("/proc/self/gid_map", "0 %d 1", group);
    }
    need(unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID), "namespaces");
}

// The rest runs in a child, the first process of its namespace: when it ends, so does all in it.
static void become_first(void) {
    pid_t child = need(fork(), "fork");
    if (child != 0) {
        int status = 0;
        need(waitpid(child, &status, 0), "waitpid");
        exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
    }
    need(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
}

static void change_root(const char *root) {
    need(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "/");
    need(mount(root, root, NULL, MS_BIND, NULL), root);
    struct statvfs found;
    need(statvfs(root, &found), root);
    unsigned long flags = found.f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME);
    if (found.f_flag & ST_RELATIME)
        flags |= MS_RELATIME;
    need(mount(NULL, root, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL), "read-only root");
    need(chdir(root), root);
    need(mount("/dev", "dev", NULL, MS_BIND | MS_REC, NULL), "dev");
    mount_at("proc", "proc", "proc");
    need(chroot("."), root);
    need(chdir("/"), "/");
}

static void stay_on(int processors) {
    cpu_set_t allowed, chosen;
    CPU_ZERO(&chosen);
    need(sched_getaffinity(0, sizeof allowed, &allowed), "sched_getaffinity");
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&chosen) < processors; cpu++)
        if (CPU_ISSET(cpu, &allowed))
            CPU_SET(cpu, &chosen);
    need(sched_setaffinity(0, sizeof chosen, &chosen), "sched_setaffinity");
}

// ---- Programs --------------------------------------------------------------------------------------

static void become(const char *program, int out) {
    char path[256];
    snprintf(path, sizeof path, "/bench/%s", program);
    int in = need(open("/dev/null", O_RDONLY), "/dev/null");
    need(dup2(in, STDIN_FILENO), "dup2");
    need(dup2(out, STDOUT_FILENO), "dup2");
    need(dup2(out, STDERR_FILENO), "dup2");
    need(chdir("/tmp"), "/tmp");
    execl(path, program, NULL);
    need(-1, path);
}

// Reads all that comes, of which the beginning is kept, and hashes it (FNV-1a).
static uint64_t read_output(int from) {
    uint64_t hash = 0xcbf29ce484222325;
    size_t kept = 0;
    char bytes[4096];
    ssize_t count;
    while ((count = need(read(from, bytes, sizeof bytes), "read")) > 0)
        for (ssize_t i = 0; i < count; i++) {
            hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001b3;
            if (kept < sizeof output - 1)
                output[kept++] = bytes[i];
        }
    output[kept] = 0;
    return hash;
}

static void run(const char *program) {
    mount_at("tmp", "/tmp", "tmpfs");
    int ends[2], status;
    need(pipe2(ends, O_CLOEXEC), "pipe");
    double start = now(CLOCK_MONOTONIC);
    pid_t child = need(fork(), "fork");
    if (child == 0)
        become(program, ends[1]);
    close(ends[1]);
    uint64_t hash = read_output(ends[0]);
    need(waitpid(child, &status, 0), "waitpid");
    double seconds = now(CLOCK_MONOTONIC) - start;
    close(ends[0]);
    need(umount2("/tmp", MNT_DETACH), "/tmp");
    char *rest = output;
    for (char *line; (line = strtok_r(rest, "\n", &rest));)
        printf("OUTPUT %s %s\n", program, line);
    if (status == 0)
        printf("PROGRAM %s %.4f %016llx\n", program, seconds, (unsigned long long)hash);
    else
        printf("FAILED %s %d\n", program, status);
    fflush(stdout);
}

static void run_all(void) {
    static const char *const environment[][2] = {
        {"PATH", "/usr/bin"}, {"HOME", "/tmp"},       {"TMPDIR", "/tmp"},
        {"LC_ALL", "C"},      {"PYTHONHASHSEED", "0"}, {"PYTHONDONTWRITEBYTECODE", "1"},
    };
    for (size_t i = 0; i < sizeof environment / sizeof *environment; i++)
        setenv(environment[i][0], environment[i][1], 1);
    char *rest = strdup(getenv("PROGRAMS") ?: "");
    for (char *program; (program = strtok_r(rest, ",", &rest));)
        run(program);
}

int main(int count, char **arguments) {
    if (count == 3) {
        enter_namespaces();
        become_first();
        change_root(arguments[1]);
        stay_on(atoi(arguments[2]));
        raise_loopback();
        run_all();
        printf("DONE %.2f\n", now(CLOCK_BOOTTIME));
        return 0;
    }
    printf("BOOT %.2f\n", now(CLOCK_BOOTTIME));
    fflush(stdout);
    mount_at("proc", "/proc", "proc");
    mount_at("sys", "/sys", "sysfs");
    mount_at("dev", "/dev", "devtmpfs");
    raise_loopback();
    run_all();
    printf("DONE %.2f\n", now(CLOCK_BOOTTIME));
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}
