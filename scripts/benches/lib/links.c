/* Emulates access links between hosts that are network namespaces of their own; see docs/link-emulator.md.
 *
 *     links SEED LINK...      LINK = up:down:delay:jitter:loss:up_queue:down_queue
 *
 * Rates in bits per second ("inf" for none), delay and jitter in seconds and each way, loss from 0 to 1, queues in
 * bytes. Host i has the address 11.99.0.(i + 1). The first line on stdout names a descriptor of this process for each
 * namespace; every line on stdin is answered with one line of counters. A line "HOST:up:down:up_loss:down_loss" changes
 * that host's link first; queues and what is under way stay. It ends when stdin does, and with it go the devices and,
 * once nobody is inside, the namespaces.
 *
 * A packet passes the sender's uplink and then the receiver's downlink. Each direction of a link is a queue with tail
 * drop, a serialiser of its rate, and a delay. Times are computed and not observed: a packet that this process handles
 * late is on the next link at the moment at which it should have been, so lateness does not add up.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <math.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MTU = 1500, MAX_HOSTS = 200, BATCH = 256, QUEUE_OF_DEVICE = 20000 };
static const uint32_t NETWORK = 0x0b630000; /* 11.99.0.0/24: libp2p treats what looks private as not of the internet */
static const double JITTER_CHANGES_S = 0.01;
/* While packets are on their way they are handled once in this time, together: a turn for each would cost more than all
 * the rest. They arrived half of it ago on average, and what is due within half of it goes now. */
static const double TURN_S = 250e-6;

struct packet {
    struct packet *next;
    double due; /* When it leaves the link, in seconds of the monotonic clock. */
    int to;
    int size;
    unsigned char bytes[MTU];
};

/* One direction of a host's link. */
struct link {
    double rate, delay, jitter, loss, queue;
    double free_at;  /* When the serialiser has sent all it was given. */
    double last_due; /* Of the packet before: jitter never changes the order. */
    double jitter_now, jitter_until;
    uint64_t random;
    struct packet *head, *tail;
    uint64_t bytes, packets, dropped, lost;
};

struct host {
    int tun, namespace;
    struct link up, down;
};

static struct host hosts[MAX_HOSTS];
static int num_hosts;
static double latest_s;
static uint64_t refused;

static void fail(const char *what) {
    fprintf(stderr, "links: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec * 1e-9;
}

/* SplitMix64 (Steele, Lea, Flood 2014), as a number from 0 to 1. */
static double uniform(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* Put a packet that arrives at a link at the time `at` on its way, or drop it. */
static void enter(struct link *link, struct packet *packet, double at) {
    double starts = fmax(at, link->free_at);
    int full = isfinite(link->rate) && (starts - at) * link->rate / 8 + packet->size > link->queue;
    int lost = link->loss > 0 && uniform(&link->random) < link->loss;
    if (full || lost) {
        link->dropped += full;
        link->lost += lost && !full;
        free(packet);
        return;
    }
    link->free_at = starts + packet->size * 8 / link->rate;
    if (link->jitter > 0 && link->free_at >= link->jitter_until) {
        link->jitter_now = link->jitter * uniform(&link->random);
        link->jitter_until = link->free_at + JITTER_CHANGES_S;
    }
    packet->due = link->last_due = fmax(link->last_due, link->free_at + link->delay + link->jitter_now);
    packet->next = NULL;
    if (link->head)
        link->tail->next = packet;
    else
        link->head = packet;
    link->tail = packet;
}

/* The link whose first packet is due first; NULL if all are empty. */
static struct link *first_due(int *host, int *is_up) {
    struct link *first = NULL;
    for (int i = 0; i < num_hosts; i++) {
        struct link *both[2] = {&hosts[i].down, &hosts[i].up};
        for (int up = 0; up < 2; up++)
            if (both[up]->head && (!first || both[up]->head->due < first->head->due))
                first = both[up], *host = i, *is_up = up;
    }
    return first;
}

/* Move everything that is due by `until`; whether anything is left. */
static int move(double until) {
    int host = 0, is_up = 0;
    struct link *link;
    while ((link = first_due(&host, &is_up))) {
        struct packet *packet = link->head;
        if (packet->due > until)
            return 1;
        latest_s = fmax(latest_s, until - packet->due);
        link->head = packet->next;
        link->bytes += packet->size;
        link->packets++;
        if (is_up) {
            enter(&hosts[packet->to].down, packet, packet->due);
        } else {
            refused += write(hosts[host].tun, packet->bytes, packet->size) != packet->size;
            free(packet);
        }
    }
    return 0;
}

/* Take what a host has sent, as of the time `at`. What is no IPv4 packet to another host goes nowhere. */
static void take(struct host *host, double at) {
    for (int i = 0; i < BATCH; i++) {
        struct packet *packet = malloc(sizeof *packet);
        if (!packet)
            fail("out of memory");
        packet->size = read(host->tun, packet->bytes, MTU);
        uint32_t to = 0;
        if (packet->size >= 20 && packet->bytes[0] >> 4 == 4) {
            memcpy(&to, packet->bytes + 16, 4);
            to = ntohl(to) - NETWORK - 1;
            if (to < (uint32_t)num_hosts) {
                packet->to = to;
                enter(&host->up, packet, at);
                continue;
            }
        }
        int size = packet->size;
        free(packet);
        if (size < 0) {
            if (errno != EAGAIN && errno != EINTR)
                fail("reading a device");
            return;
        }
    }
}

static void print_link(const char *name, const struct link *link) {
    printf("\"%s\": {\"bytes\": %llu, \"packets\": %llu, \"dropped\": %llu, \"lost\": %llu}", name,
           (unsigned long long)link->bytes, (unsigned long long)link->packets, (unsigned long long)link->dropped,
           (unsigned long long)link->lost);
}

static void report(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
    printf("{\"time_s\": %.6f, \"cpu_s\": %.6f, \"latest_s\": %.6f, \"refused\": %llu, \"hosts\": [", now(), cpu,
           latest_s, (unsigned long long)refused);
    for (int i = 0; i < num_hosts; i++) {
        printf("%s{", i ? ", " : "");
        print_link("up", &hosts[i].up);
        printf(", ");
        print_link("down", &hosts[i].down);
        printf("}");
    }
    printf("]}\n");
    fflush(stdout);
    latest_s = 0;
}

static void set_flags(int socket, const char *name, int flags) {
    struct ifreq request = {0};
    strcpy(request.ifr_name, name);
    request.ifr_flags = flags;
    if (ioctl(socket, SIOCSIFFLAGS, &request))
        fail("bringing up a device");
}

static void set_address(int socket, unsigned long what, const char *name, uint32_t value) {
    struct ifreq request = {0};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(value)};
    strcpy(request.ifr_name, name);
    memcpy(&request.ifr_addr, &address, sizeof address);
    if (ioctl(socket, what, &request))
        fail("setting an address");
}

/* A namespace of its own for host i, with a loopback and a device; this process is inside it afterwards. */
static void build(int i) {
    if (unshare(CLONE_NEWNET))
        fail("making a network namespace (are you root?)");
    hosts[i].namespace = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    hosts[i].tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    struct ifreq request = {.ifr_name = "link0", .ifr_flags = IFF_TUN | IFF_NO_PI};
    if (hosts[i].namespace < 0 || hosts[i].tun < 0 || ioctl(hosts[i].tun, TUNSETIFF, &request))
        fail("opening /dev/net/tun");
    int socket_ = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    /* A long one: packets are dropped by our queues, never by the device's. */
    request.ifr_qlen = QUEUE_OF_DEVICE;
    if (socket_ < 0 || ioctl(socket_, SIOCSIFTXQLEN, &request))
        fail("setting up a device");
    set_flags(socket_, "lo", IFF_UP | IFF_RUNNING);
    set_address(socket_, SIOCSIFADDR, "link0", NETWORK + i + 1);
    set_address(socket_, SIOCSIFNETMASK, "link0", 0xffffff00);
    set_flags(socket_, "link0", IFF_UP | IFF_RUNNING);
    close(socket_);
}

static void configure(int i, const char *text, uint64_t seed) {
    struct link link = {0};
    double up, down, up_queue, down_queue;
    if (sscanf(text, "%lf:%lf:%lf:%lf:%lf:%lf:%lf", &up, &down, &link.delay, &link.jitter, &link.loss, &up_queue,
               &down_queue) != 7) {
        fprintf(stderr, "links: %s is no link\n", text);
        exit(2);
    }
    hosts[i].up = hosts[i].down = link;
    hosts[i].up.rate = up, hosts[i].up.queue = up_queue;
    hosts[i].down.rate = down, hosts[i].down.queue = down_queue;
    hosts[i].up.random = seed * 2 * MAX_HOSTS + 2 * i;
    hosts[i].down.random = seed * 2 * MAX_HOSTS + 2 * i + 1;
}

/* A line on stdin: change a link, unless it is empty. */
static void obey(const char *line) {
    int i;
    double up, down, up_loss, down_loss;
    if (*line && (sscanf(line, "%d:%lf:%lf:%lf:%lf", &i, &up, &down, &up_loss, &down_loss) != 5 || i < 0 || i >= num_hosts)) {
        fprintf(stderr, "links: %s is no change of a link\n", line);
        exit(2);
    }
    if (*line) {
        hosts[i].up.rate = up, hosts[i].up.loss = up_loss;
        hosts[i].down.rate = down, hosts[i].down.loss = down_loss;
    }
    report();
}

int main(int argc, char **argv) {
    num_hosts = argc - 2;
    if (num_hosts < 1 || num_hosts > MAX_HOSTS) {
        fprintf(stderr, "usage: %s SEED LINK... (at most %d)\n", argv[0], MAX_HOSTS);
        return 2;
    }
    for (int i = 0; i < num_hosts; i++) {
        configure(i, argv[2 + i], strtoull(argv[1], NULL, 10));
        build(i);
    }
    /* Workers keep all cores busy; what emulates the world around them must not wait for a turn. */
    sched_setscheduler(0, SCHED_RR, &(struct sched_param){.sched_priority = 1});
    prctl(PR_SET_TIMERSLACK, 1ul);
    printf("[");
    for (int i = 0; i < num_hosts; i++)
        printf("%s%d", i ? ", " : "", hosts[i].namespace);
    printf("]\n");
    fflush(stdout);

    struct pollfd watched[MAX_HOSTS + 1] = {{.fd = 0, .events = POLLIN}};
    for (int i = 0; i < num_hosts; i++)
        watched[i + 1] = (struct pollfd){.fd = hosts[i].tun, .events = POLLIN};
    for (int busy = 0;;) {
        if (busy)
            clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){.tv_nsec = TURN_S * 1e9}, NULL);
        if (poll(watched, num_hosts + 1, busy ? 0 : -1) < 0 && errno != EINTR)
            fail("waiting");
        double at = now();
        for (int i = 0; i < num_hosts; i++)
            if (watched[i + 1].revents)
                take(&hosts[i], at - TURN_S / 2);
        busy = move(at + TURN_S / 2);
        if (watched[0].revents) {
            static char line[256];
            static size_t length;
            ssize_t size = read(0, line + length, sizeof line - length);
            if (size <= 0)
                return 0;
            length += size;
            for (char *end; (end = memchr(line, '\n', length));) {
                *end++ = 0;
                obey(line);
                length -= end - line;
                memmove(line, end, length);
            }
        }
    }
}
