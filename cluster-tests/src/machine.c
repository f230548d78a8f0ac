/* The machine that a node runs on, as a test wants it to be: its clock, and how long its disk takes. Preloaded into the
 * node; both are read anew at each call from a file that the test writes, two 64-bit numbers. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct machine {
    volatile int64_t clock_ahead_ms;
    volatile int64_t disk_takes_us;
};

static struct machine as_it_is;
static struct machine *machine = &as_it_is;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);

__attribute__((constructor)) static void begin(void) {
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    real_pwrite64 = dlsym(RTLD_NEXT, "pwrite64");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    const char *path = getenv("SKEIN_TEST_MACHINE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) {
        return;
    }
    void *mapped = mmap(NULL, sizeof *machine, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) {
        machine = mapped;
    }
    close(file);
}

static void take_time(void) {
    int64_t takes_us = machine->disk_takes_us;
    if (takes_us > 0) {
        struct timespec takes = {takes_us / 1000000, takes_us % 1000000 * 1000};
        nanosleep(&takes, NULL);
    }
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = real_clock_gettime(clock, now);
    int64_t ahead_ms = machine->clock_ahead_ms;
    if (result == 0 && clock == CLOCK_REALTIME && ahead_ms != 0) {
        int64_t nanos = now->tv_nsec + ahead_ms % 1000 * 1000000;
        int64_t borrowed = nanos < 0 ? -1 : nanos / 1000000000;
        now->tv_sec += ahead_ms / 1000 + borrowed;
        now->tv_nsec = nanos - borrowed * 1000000000;
    }
    return result;
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
    take_time();
    return real_pwrite64(file, bytes, count, offset);
}

int fdatasync(int file) {
    take_time();
    return real_fdatasync(file);
}

int fsync(int file) {
    take_time();
    return real_fsync(file);
}
