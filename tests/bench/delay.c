/* A way to an HTTP server that is far away: every request waits before it goes on, and is counted.
 *
 *     delay PORT SERVER_PORT MILLISECONDS
 *
 * Both ports are of 127.0.0.1. "GET /-/counts" on PORT answers what went through since the last time, and begins anew:
 * requests by kind (list: a GET with a query of "list-type" or "delimiter"), connections, bytes of answers, and bytes of
 * what was sent with requests.
 *
 * Answers are not looked at, but spliced, so that this costs as little as can be. Requests must not be pipelined, which
 * no client of S3 does, and their bodies must have a Content-Length.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_SIZE = 64 << 10, PIPE_SIZE = 1 << 20 };

static int server_port;
static struct timespec latency;
static atomic_long gets, heads, lists, others, connections, bytes, sent;

struct connection {
    int client, server;
};

static int write_all(int to, const char *data, size_t size)
{
    while (size) {
        ssize_t done = write(to, data, size);
        if (done <= 0)
            return -1;
        data += done;
        size -= done;
    }
    return 0;
}

static void count(const char *head)
{
    char line[4096];
    size_t length = strcspn(head, "\r\n");
    if (length >= sizeof line)
        length = sizeof line - 1;
    memcpy(line, head, length);
    line[length] = 0;
    if (!strncmp(line, "HEAD ", 5))
        heads++;
    else if (strncmp(line, "GET ", 4))
        others++;
    else if (strstr(line, "list-type=") || strstr(line, "delimiter=") || strstr(line, "prefix="))
        lists++;
    else
        gets++;
}

static int answer_counts(int client)
{
    char body[256], answer[512];
    int size = snprintf(body, sizeof body,
                        "{\"get\": %ld, \"head\": %ld, \"list\": %ld, \"other\": %ld, \"connections\": %ld, \"bytes\": %ld, \"sent\": %ld}\n",
                        atomic_exchange(&gets, 0), atomic_exchange(&heads, 0), atomic_exchange(&lists, 0),
                        atomic_exchange(&others, 0), atomic_exchange(&connections, 0), atomic_exchange(&bytes, 0),
                        atomic_exchange(&sent, 0));
    int length = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, body);
    return write_all(client, answer, length);
}

/* The way back: whatever comes. */
static void *answers(void *argument)
{
    struct connection *connection = argument;
    int ends[2];
    if (!pipe(ends)) {
        fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE);
        for (;;) {
            ssize_t got = splice(connection->server, NULL, ends[1], NULL, PIPE_SIZE, SPLICE_F_MOVE);
            if (got <= 0)
                break;
            bytes += got;
            while (got > 0) {
                ssize_t done = splice(ends[0], NULL, connection->client, NULL, got, SPLICE_F_MOVE);
                if (done <= 0)
                    goto broken;
                got -= done;
            }
        }
    broken:
        close(ends[0]);
        close(ends[1]);
    }
    shutdown(connection->client, SHUT_RDWR);
    shutdown(connection->server, SHUT_RDWR);
    return NULL;
}

static int reach_server(void)
{
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(server_port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int server = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(server, (struct sockaddr *)&address, sizeof address)) {
        close(server);
        return -1;
    }
    return server;
}

/* One head, and what has come behind it; 0 at the end of the connection. */
static ssize_t read_head(int client, char *head, size_t have, char **body)
{
    for (;;) {
        head[have] = 0;
        *body = strstr(head, "\r\n\r\n");
        if (*body) {
            *body += 4;
            return have;
        }
        ssize_t got = read(client, head + have, HEAD_SIZE - 1 - have);
        if (got <= 0)
            return 0;
        have += got;
    }
}

static void *requests(void *argument)
{
    struct connection connection = {.client = (int)(long)argument, .server = -1};
    char *head = malloc(HEAD_SIZE), *body;
    pthread_t back;
    int has_back = 0;
    ssize_t have = 0;
    while ((have = read_head(connection.client, head, have, &body)) > 0) {
        if (!strncmp(head, "GET /-/counts ", 14)) {
            answer_counts(connection.client);
            break;
        }
        if (connection.server < 0) {
            connections++;
            connection.server = reach_server();
            if (connection.server < 0 || pthread_create(&back, NULL, answers, &connection))
                break;
            has_back = 1;
        }
        count(head);
        nanosleep(&latency, NULL);
        char *field = strcasestr(head, "\r\ncontent-length:");
        long left = field && field < body ? atol(field + 17) : 0;
        sent += left;
        long behind = have - (body - head), own = behind < left ? behind : left;
        if (write_all(connection.server, head, body - head + own))
            break;
        left -= own;
        have = behind - own;
        memmove(head, body + own, have);
        char chunk[1 << 16];
        while (left > 0) {
            ssize_t got = read(connection.client, chunk, left < (long)sizeof chunk ? left : (long)sizeof chunk);
            if (got <= 0 || write_all(connection.server, chunk, got))
                goto end;
            left -= got;
        }
    }
end:
    shutdown(connection.client, SHUT_RDWR);
    if (connection.server >= 0)
        shutdown(connection.server, SHUT_RDWR);
    if (has_back)
        pthread_join(back, NULL);
    close(connection.client);
    if (connection.server >= 0)
        close(connection.server);
    free(head);
    return NULL;
}

int main(int count, char **arguments)
{
    if (count != 4) {
        fprintf(stderr, "usage: delay PORT SERVER_PORT MILLISECONDS\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    server_port = atoi(arguments[2]);
    latency.tv_sec = atoi(arguments[3]) / 1000;
    latency.tv_nsec = atoi(arguments[3]) % 1000 * 1000000L;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 512)) {
        perror("delay");
        return 1;
    }
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            continue;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attributes, 1 << 19);
        if (pthread_create(&thread, &attributes, requests, (void *)(long)client))
            close(client);
        pthread_attr_destroy(&attributes);
    }
}
