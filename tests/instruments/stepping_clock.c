/* A wall clock that steps: loaded into a server by LD_PRELOAD, it adds an offset to what the server is told the time is.
 *
 * The offset, in nanoseconds, is the one signed 64-bit number in the file that CLOCK_OFFSET_FILE names, mapped shared: who
 * writes it there moves the clock at once, back or on. It is made, with no offset, where it is not there. Only the wall clock is moved (CLOCK_REALTIME, gettimeofday, time): a
 * machine's other clocks do not step either. Everything else goes to the system as it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t SECOND_NS = 1000000000;
static volatile int64_t *offset_ns;

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("CLOCK_OFFSET_FILE");
    int file = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    void *there = file < 0 || ftruncate(file, sizeof *offset_ns) ? MAP_FAILED : mmap(NULL, sizeof *offset_ns, PROT_READ, MAP_SHARED, file, 0);
    if (there == MAP_FAILED) abort(); /* a clock that does not step would prove nothing */
    offset_ns = there;
    close(file);
}

static int told(clockid_t clock, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    if (!failed && offset_ns && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t now = at->tv_sec * SECOND_NS + at->tv_nsec + *offset_ns;
        at->tv_sec = now / SECOND_NS;
        at->tv_nsec = now % SECOND_NS;
    }
    return failed;
}

int clock_gettime(clockid_t clock, struct timespec *at) { return told(clock, at); }

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    int failed = told(CLOCK_REALTIME, &now);
    if (!failed) {
        at->tv_sec = now.tv_sec;
        at->tv_usec = now.tv_nsec / 1000;
    }
    return failed;
}

time_t time(time_t *at) {
    struct timespec now;
    told(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
