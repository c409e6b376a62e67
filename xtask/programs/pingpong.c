// Two processes that send one byte to and fro over a TCP connection on the loopback interface.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int need(int result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static void no_delay(int socket) {
    int one = 1;
    need(setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), "TCP_NODELAY");
}

static unsigned char next(unsigned char byte) { return byte * 5 + 3; }

static void answer(int socket) {
    unsigned char byte;
    while (need(read(socket, &byte, 1), "read") == 1) {
        byte = next(byte);
        need(write(socket, &byte, 1), "write");
    }
}

int main(void) {
    long rounds = 60000 * atol(getenv("SCALE") ?: "100") / 100 + 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = need(socket(AF_INET, SOCK_STREAM, 0), "socket");
    need(bind(listener, (struct sockaddr *)&address, length), "bind");
    need(listen(listener, 1), "listen");
    need(getsockname(listener, (struct sockaddr *)&address, &length), "getsockname");
    pid_t child = need(fork(), "fork");
    if (child == 0) {
        int connection = need(accept(listener, NULL, NULL), "accept");
        no_delay(connection);
        answer(connection);
        return 0;
    }
    int connection = need(socket(AF_INET, SOCK_STREAM, 0), "socket");
    need(connect(connection, (struct sockaddr *)&address, length), "connect");
    no_delay(connection);
    unsigned char byte = 1;
    unsigned long sum = 0;
    for (long round = 0; round < rounds; round++) {
        unsigned char sent = byte;
        need(write(connection, &byte, 1), "write");
        if (need(read(connection, &byte, 1), "read") != 1 || byte != next(sent)) {
            fprintf(stderr, "round %ld: sent %d, received %d\n", round, sent, byte);
            return 1;
        }
        sum = sum * 31 + byte;
    }
    close(connection);
    int status;
    need(waitpid(child, &status, 0), "waitpid");
    printf("%ld round trips, checksum %lx\n", rounds, sum);
    return status != 0;
}
