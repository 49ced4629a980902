/* A process whose memory's lock is held for as long as this runs: who reads its /proc/PID/cmdline waits.
 *
 * usage: lock_holder FUSE_NODE MOUNT_POINT USER SECONDS QEMU_ARGUMENT...
 *
 * The victim maps a file of a FUSE that nobody answers for. The reader, its parent, reads the page through
 * /proc/VICTIM/mem: that fault keeps the lock while it waits, and cannot be interrupted. A thread of the victim calls
 * mmap(), which waits for the lock, and every later reader queues behind it. Everything but the mount is done as USER.
 * The victim's pid is printed once it runs. Only the first process has the FUSE open, so killing it ends the FUSE, and
 * with it all waiting; so does its alarm.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int fuse;

static void need(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static void reply(unsigned long unique, int error, const void *data, size_t size)
{
    char answer[4096];
    struct fuse_out_header head = {.len = sizeof head + size, .error = error, .unique = unique};

    memcpy(answer, &head, sizeof head);
    memcpy(answer + sizeof head, data, size);
    need(write(fuse, answer, head.len) == (ssize_t)head.len || errno == ENOENT, "fuse answer");
}

static struct fuse_attr attributes(int is_folder)
{
    return (struct fuse_attr){.ino = is_folder ? 1 : 2, .mode = is_folder ? 040755 : 0100644, .nlink = 1, .size = 4096};
}

static void *serve(void *unused)
{
    static char request[1 << 17];
    struct fuse_in_header *head = (void *)request;

    (void)unused;
    while (read(fuse, request, sizeof request) > 0) {
        if (head->opcode == FUSE_INIT) {
            struct fuse_init_out out = {.major = 7, .minor = 31, .max_write = 4096, .max_background = 8};
            reply(head->unique, 0, &out, sizeof out);
        } else if (head->opcode == FUSE_LOOKUP) {
            struct fuse_entry_out out = {.nodeid = 2, .entry_valid = 100, .attr_valid = 100, .attr = attributes(0)};
            reply(head->unique, 0, &out, sizeof out);
        } else if (head->opcode == FUSE_GETATTR) {
            struct fuse_attr_out out = {.attr_valid = 100, .attr = attributes(head->nodeid == 1)};
            reply(head->unique, 0, &out, sizeof out);
        } else if (head->opcode == FUSE_OPEN) {
            struct fuse_open_out out = {.fh = 1};
            reply(head->unique, 0, &out, sizeof out);
        } else if (head->opcode != FUSE_READ && head->opcode != FUSE_FORGET && head->opcode != FUSE_BATCH_FORGET) {
            reply(head->unique, -ENOSYS, "", 0);
        } /* FUSE_READ has no answer: that is the point */
    }
    return NULL;
}

static void *map_more(void *unused)
{
    (void)unused;
    usleep(500000); /* the reader has asked for the page by then; before it this would not wait */
    mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return NULL;
}

static void be_victim(const char *file, int told)
{
    pthread_t thread;
    void *page;
    int handle;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "qemu-system-x86");
    need((handle = open(file, O_RDONLY)) >= 0, file);
    need((page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, handle, 0)) != MAP_FAILED, "mmap");
    need(pthread_create(&thread, NULL, map_more, NULL) == 0, "thread");
    need(write(told, &page, sizeof page) == sizeof page, "pipe");
    pause();
}

static void be_reader(const char *file)
{
    char memory[64], byte;
    int told[2], handle;
    pid_t victim;
    off_t page;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(fuse);
    need(pipe(told) == 0 && (victim = fork()) >= 0, "fork");
    if (victim == 0)
        be_victim(file, told[1]);
    need(read(told[0], &page, sizeof page) == sizeof page, "the victim");
    snprintf(memory, sizeof memory, "/proc/%d/mem", victim);
    need((handle = open(memory, O_RDONLY)) >= 0, memory);
    printf("%d\n", victim);
    fflush(stdout);
    (void)!pread(handle, &byte, 1, page); /* until the FUSE ends, and with it the page: EIO */
}

int main(int count, char **arguments)
{
    int user = count > 5 ? atoi(arguments[3]) : 0;
    char options[99], file[4096];
    pthread_t server;
    pid_t reader;

    need(count > 5, "usage");
    alarm((unsigned)atoi(arguments[4]));
    need((fuse = open(arguments[1], O_RDWR | O_CLOEXEC)) >= 0, arguments[1]);
    need(unshare(CLONE_NEWNS) == 0 && mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "unshare");
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=%d,group_id=%d", fuse, user, user);
    need(mount("fuse", arguments[2], "fuse", MS_NOSUID | MS_NODEV, options) == 0, "mount");
    need(setgid((gid_t)user) == 0 && setuid((uid_t)user) == 0, "setuid");
    prctl(PR_SET_DUMPABLE, 1);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(file, sizeof file, "%s/f", arguments[2]);
    need((reader = fork()) >= 0, "fork");
    if (reader == 0) {
        be_reader(file);
        return 0;
    }
    need(pthread_create(&server, NULL, serve, NULL) == 0, "thread");
    pause();
    return 0;
}
