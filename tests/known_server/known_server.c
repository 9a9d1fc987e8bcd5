/* A server of OpenAI's form whose every token leaves on a known schedule, and which counts what it truly sent.
 *
 * A request's i-th token (from 0) is due ttft + i * itl after the request was read; each leaves in a write of its own,
 * unless several are due by the time that the loop comes round. Headers, and a chat's role-only chunk, leave at once.
 * Every event is an HTTP chunk, as uvicorn sends it. GET /truth gives the counts, GET /reset sets them to 0.
 *
 *   known_server [--port N] [--unix PATH] [--ttft-us N] [--itl-us N] [--seed N] [--KIND SHARE]...
 *
 * KIND: reset, http_400, http_503, malformed, cut, hang; SHARE of the requests end so, drawn from the seed by the
 * request's number. It prints its port once it listens, and ends when its standard input does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FDS = 1 << 16, BINS = 20000 };
enum kind { FINE, RESET, HTTP_400, HTTP_503, MALFORMED, CUT, HANG, KINDS };
static const char *const names[KINDS] = {"fine", "reset", "http_400", "http_503", "malformed", "cut", "hang"};

struct buffer { char *data; size_t used, size; };
struct connection {
    struct buffer in, out;
    size_t written;              /* of out */
    int open, busy, place;       /* place in the heap, -1: not in it */
    int chat, stream, usage, tokens, sent, asked;
    enum kind kind;
    int64_t received, due;
};

static struct connection connections[MOST_FDS];
static int heap[MOST_FDS], waiting;
static int64_t ttft = 100000000, itl = 10000000;
static uint64_t seed;
static double shares[KINDS];
static int poller;
static uint64_t number; /* of requests since the start, for the draw */
static struct {
    long requests, kinds[KINDS], tokens, accepted, connected, streams, most_streams, given_up;
    long late[2][BINS + 1]; /* by microsecond: of first tokens, of the others */
} truth;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* A heap of connections by due time. */
static void put(int at, int fd) { heap[at] = fd; connections[fd].place = at; }
static void sift(int at) {
    int fd = heap[at];
    while (at > 0 && connections[heap[(at - 1) / 2]].due > connections[fd].due) {
        put(at, heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (int child; (child = 2 * at + 1) < waiting; at = child) {
        if (child + 1 < waiting && connections[heap[child + 1]].due < connections[heap[child]].due) child++;
        if (connections[heap[child]].due >= connections[fd].due) break;
        put(at, heap[child]);
    }
    put(at, fd);
}
static void wait_until(int fd, int64_t due) {
    struct connection *c = &connections[fd];
    c->due = due;
    if (c->place < 0) { c->place = waiting; heap[waiting++] = fd; }
    sift(c->place);
}
static void forget(int fd) {
    int at = connections[fd].place;
    if (at < 0) return;
    connections[fd].place = -1;
    if (--waiting > at) { put(at, heap[waiting]); sift(at); }
}

static void room(struct buffer *b, size_t more) {
    if (b->used + more <= b->size) return;
    b->size = 2 * (b->used + more);
    if (!(b->data = realloc(b->data, b->size))) abort();
}
static void append(struct buffer *b, const char *format, ...) {
    va_list arguments;
    room(b, 1024);
    va_start(arguments, format);
    b->used += vsnprintf(b->data + b->used, 1024, format, arguments);
    va_end(arguments);
}
static void chunk(struct buffer *b, const char *event) {
    size_t length = strlen(event);
    room(b, length + 64);
    b->used += sprintf(b->data + b->used, "%zx\r\ndata: ", length + 8);
    memcpy(b->data + b->used, event, length);
    memcpy(b->data + b->used + length, "\n\n\r\n", 4);
    b->used += length + 4;
}

static void over(struct connection *c) {
    truth.streams -= c->busy && c->stream;
    c->busy = 0;
}
static void hang_up(int fd, int reset) {
    struct connection *c = &connections[fd];
    struct linger linger = {1, 0};
    if (reset) setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    truth.given_up += c->busy && c->kind == FINE;
    over(c);
    forget(fd);
    close(fd);
    free(c->in.data);
    free(c->out.data);
    memset(c, 0, sizeof *c);
    truth.connected--;
}
static void flush(int fd) {
    struct connection *c = &connections[fd];
    while (c->written < c->out.used) {
        ssize_t n = send(fd, c->out.data + c->written, c->out.used - c->written, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) hang_up(fd, 0);
            return; /* epoll says when there is room: edge triggered for both ways */
        }
        c->written += n;
    }
    c->written = c->out.used = 0;
}

static const char token[] =
    "{\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"text_completion\",\"created\":1700000000,"
    "\"model\":\"known\",\"choices\":[{\"index\":0,\"text\":\" word\",\"logprobs\":null,\"finish_reason\":null,"
    "\"stop_reason\":null}],\"usage\":null}";
static const char last[] =
    "{\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"text_completion\",\"created\":1700000000,"
    "\"model\":\"known\",\"choices\":[{\"index\":0,\"text\":\" word\",\"logprobs\":null,\"finish_reason\":\"length\","
    "\"stop_reason\":null}],\"usage\":null}";
static const char chat_role[] = "{\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,"
    "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}";
static const char chat_token[] = "{\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,"
    "\"delta\":{\"content\":\" word\"},\"finish_reason\":null}]}";
static const char chat_last[] = "{\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,"
    "\"delta\":{\"content\":\" word\"},\"finish_reason\":\"length\"}]}";

static void whole(struct connection *c, const char *status, const char *body) {
    append(&c->out, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", status, strlen(body));
    room(&c->out, strlen(body));
    memcpy(c->out.data + c->out.used, body, strlen(body));
    c->out.used += strlen(body);
}
static void usage(const struct connection *c, char *text, size_t size) {
    snprintf(text, size, "{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}", c->asked, c->tokens,
             c->asked + c->tokens);
}

/* All tokens of a connection that are due; the rest of the answer with the last one. */
static void serve(int fd, int64_t at) {
    struct connection *c = &connections[fd];
    char text[512], counts[128];
    if (c->kind == RESET) { hang_up(fd, 1); return; }
    usage(c, counts, sizeof counts);
    if (!c->stream) {
        size_t length = 6 * (size_t)c->tokens;
        char *words = malloc(length + 512);
        int used = sprintf(words, "{\"object\":\"x\",\"choices\":[{\"index\":0,%s", c->chat
                           ? "\"message\":{\"role\":\"assistant\",\"content\":\"" : "\"text\":\"");
        for (int i = 0; i < c->tokens; i++) used += sprintf(words + used, " word");
        sprintf(words + used, "\"%s,\"finish_reason\":\"length\"}],\"usage\":%s}", c->chat ? "}" : "", counts);
        if (c->kind == MALFORMED) words[1] = ' ';
        whole(c, "200 OK", words);
        free(words);
        if (c->kind == CUT || c->kind == HANG) c->out.used -= 5;
        truth.tokens += c->tokens;
        c->sent = c->tokens;
    }
    while (c->sent < c->tokens && c->due <= at) {
        int64_t late = (at - c->due) / 1000;
        truth.late[c->sent > 0][late < BINS ? late : BINS]++;
        truth.tokens++;
        c->sent++;
        if (c->kind == MALFORMED && c->sent == 1) {
            chunk(&c->out, "{\"choices\":[{\"text\":\" word");
        } else if (c->sent < c->tokens) {
            chunk(&c->out, c->chat ? chat_token : token);
        } else {
            chunk(&c->out, c->chat ? chat_last : last);
            if (c->usage) {
                snprintf(text, sizeof text, "{\"object\":\"x\",\"choices\":[],\"usage\":%s}", counts);
                chunk(&c->out, text);
            }
            chunk(&c->out, "[DONE]");
            append(&c->out, "0\r\n\r\n");
        }
        c->due += itl;
        if (c->kind == HANG || (c->kind == CUT && 2 * c->sent >= c->tokens)) break;
    }
    if (c->kind == CUT && 2 * c->sent >= c->tokens) {
        if (c->stream) append(&c->out, "80\r\ndata: {\"choi");
        flush(fd);
        if (c->open) hang_up(fd, 0);
        return;
    }
    if (c->kind == HANG) {
        forget(fd);
    } else if (c->sent == c->tokens) {
        over(c);
        forget(fd);
    } else {
        wait_until(fd, c->due);
    }
    flush(fd);
}

static enum kind draw(void) {
    uint64_t z = seed * 0x9E3779B97F4A7C15u + ++number * 0xD1B54A32D192ED03u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    double u = ((z ^ (z >> 31)) >> 11) * 0x1p-53;
    for (int kind = 1; kind < KINDS; kind++)
        if ((u -= shares[kind]) < 0) return kind;
    return FINE;
}

static double quantile(const long *bins, double share) {
    long total = 0, seen = 0;
    int at = 0;
    for (int i = 0; i <= BINS; i++) total += bins[i];
    while (at < BINS && (seen += bins[at]) <= share * total) at++;
    return total ? at * 1e-6 : 0;
}
static void tell(struct connection *c) {
    struct buffer b = {0};
    append(&b, "{\"requests\":%ld,\"tokens\":%ld,\"accepted\":%ld,\"connected\":%ld,\"streams\":%ld,\"most_streams\":%ld,"
           "\"given_up\":%ld,\"pid\":%d", truth.requests, truth.tokens, truth.accepted, truth.connected, truth.streams,
           truth.most_streams, truth.given_up, getpid());
    for (int kind = 0; kind < KINDS; kind++) append(&b, ",\"%s\":%ld", names[kind], truth.kinds[kind]);
    for (int i = 0; i < 2; i++)
        append(&b, ",\"%s_late_s\":{\"p50\":%.6f,\"p99\":%.6f,\"max\":%.6f}", i ? "next" : "first",
               quantile(truth.late[i], 0.5), quantile(truth.late[i], 0.99), quantile(truth.late[i], 1));
    append(&b, "}");
    whole(c, "200 OK", b.data);
    free(b.data);
}

/* A key's value in a JSON text if it begins so, with or without a space before it. */
static char *value(char *body, const char *key, const char *begins) {
    char *at = strstr(body, key);
    if (!at) return NULL;
    at += strlen(key);
    at += *at == ' ';
    return strncmp(at, begins, strlen(begins)) ? NULL : at;
}

/* One request of `length` bytes, its body from `body` on. */
static void answer(int fd, char *request, char *body) {
    struct connection *c = &connections[fd];
    if (!strncmp(request, "GET ", 4)) {
        if (!strncmp(request + 4, "/truth", 6)) tell(c);
        else if (!strncmp(request + 4, "/v1/models", 10))
            whole(c, "200 OK", "{\"object\":\"list\",\"data\":[{\"id\":\"known\",\"max_model_len\":1000000}]}");
        else if (!strncmp(request + 4, "/health", 7)) whole(c, "200 OK", "{}");
        else if (!strncmp(request + 4, "/version", 8)) whole(c, "200 OK", "{\"version\":\"1.0\"}");
        else if (!strncmp(request + 4, "/reset", 6)) {
            long connected = truth.connected, streams = truth.streams;
            memset(&truth, 0, sizeof truth);
            truth.connected = connected;
            truth.most_streams = truth.streams = streams;
            whole(c, "200 OK", "{}");
        } else whole(c, "404 Not Found", "{\"error\":{\"message\":\"no such page\"}}");
        flush(fd);
        return;
    }
    char *given = value(body, "\"max_tokens\":", ""), *prompt = value(body, "\"prompt\":", "[");
    c->received = now();
    c->chat = strstr(request, "/chat/") != NULL;
    c->stream = value(body, "\"stream\":", "true") != NULL;
    c->usage = value(body, "\"include_usage\":", "true") != NULL;
    c->tokens = given ? atoi(given) : 16;
    c->asked = prompt != NULL;
    for (; prompt && *prompt && *prompt != ']'; prompt++) c->asked += *prompt == ',';
    c->sent = 0;
    c->kind = draw();
    truth.requests++;
    truth.kinds[c->kind]++;
    if (c->kind == HTTP_400) whole(c, "400 Bad Request", "{\"error\":{\"message\":\"refused, as drawn\",\"code\":400}}");
    if (c->kind == HTTP_503) whole(c, "503 Service Unavailable", "{\"error\":{\"message\":\"busy, as drawn\"}}");
    if (c->kind == HTTP_400 || c->kind == HTTP_503) { flush(fd); return; }
    c->busy = 1;
    if (c->stream) {
        append(&c->out, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        if (c->chat) chunk(&c->out, chat_role);
        if (++truth.streams > truth.most_streams) truth.most_streams = truth.streams;
    }
    wait_until(fd, c->received + ttft + (c->stream ? 0 : itl * (c->tokens - 1)));
    if (ttft) flush(fd);
}

static void receive(int fd) {
    struct connection *c = &connections[fd];
    for (;;) {
        room(&c->in, 65537);
        ssize_t n = recv(fd, c->in.data + c->in.used, 65536, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) { hang_up(fd, 0); return; }
        if (n < 0) return;
        c->in.used += n;
        c->in.data[c->in.used] = 0;
        for (char *end; !c->busy && (end = strstr(c->in.data, "\r\n\r\n"));) {
            char *length = strcasestr(c->in.data, "\r\ncontent-length:"), *body = end + 4;
            size_t needed = body - c->in.data + (length && length < end ? atol(length + 17) : 0);
            if (c->in.used < needed) break;
            answer(fd, c->in.data, body);
            if (!c->open) return;
            memmove(c->in.data, c->in.data + needed, c->in.used - needed + 1);
            c->in.used -= needed;
        }
    }
}

static void welcome(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        if (fd >= MOST_FDS) { close(fd); continue; }
        int yes = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        connections[fd] = (struct connection){.open = 1, .place = -1};
        struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP, {.fd = fd}};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        truth.accepted++;
        truth.connected++;
    }
}

static int listen_on(struct sockaddr *address, socklen_t size) {
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (fd < 0 || bind(fd, address, size) || listen(fd, 4096)) { perror("known_server: listen"); exit(2); }
    struct epoll_event event = {EPOLLIN, {.fd = fd}};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    return fd;
}

int main(int count, char **arguments) {
    struct sockaddr_in inet = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    for (int i = 1; i + 1 < count; i += 2) {
        const char *name = arguments[i] + 2, *value = arguments[i + 1];
        if (!strcmp(name, "port")) inet.sin_port = htons(atoi(value));
        if (!strcmp(name, "unix")) strncpy(local.sun_path, value, sizeof local.sun_path - 1);
        if (!strcmp(name, "ttft-us")) ttft = atoll(value) * 1000;
        if (!strcmp(name, "itl-us")) itl = atoll(value) * 1000;
        if (!strcmp(name, "seed")) seed = atoll(value);
        for (int kind = 1; kind < KINDS; kind++)
            if (!strcmp(name, names[kind])) shares[kind] = atof(value);
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1);
    poller = epoll_create1(0);
    int listeners[2] = {-1, listen_on((struct sockaddr *)&inet, sizeof inet)};
    if (local.sun_path[0]) listeners[0] = listen_on((struct sockaddr *)&local, sizeof local);
    socklen_t size = sizeof inet;
    getsockname(listeners[1], (struct sockaddr *)&inet, &size);
    struct epoll_event ending = {EPOLLIN | EPOLLHUP, {.fd = 0}};
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &ending);
    printf("%d\n", ntohs(inet.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[512];
        struct timespec timeout = {0};
        if (waiting) {
            int64_t left = connections[heap[0]].due - now();
            if (left > 0) timeout = (struct timespec){left / 1000000000, left % 1000000000};
        }
        int ready = syscall(SYS_epoll_pwait2, poller, events, 512, waiting ? &timeout : NULL, NULL, 0);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            char byte;
            if (fd == 0) {
                if (read(0, &byte, 1) <= 0) return 0;
            } else if (fd == listeners[0] || fd == listeners[1]) {
                welcome(fd);
            } else {
                if (connections[fd].open && events[i].events & EPOLLOUT) flush(fd);
                if (connections[fd].open && events[i].events & ~EPOLLOUT) receive(fd);
            }
        }
        /* Those due when the round began: others get their turn, and answers their room, before the next. */
        for (int64_t at; waiting && connections[heap[0]].due <= (at = now());) serve(heap[0], at);
    }
}
