//go:build unix

package testserver

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

var rabbitMQ = &kind{
	name: "RabbitMQ", owner: []string{"rabbitmq", "nobody"}, install: "rabbitmq-server", find: findRabbitMQ,
	prepare: prepareRabbitMQ, ready: rabbitMQReady,
	signals: [3]syscall.Signal{Fast: syscall.SIGTERM, Immediate: syscall.SIGKILL, Killed: syscall.SIGKILL},
}

var sharedRabbitMQ shared

// RabbitMQ returns the URL of the broker that all such tests of the binary share: a test uses queues that are named after it.
func RabbitMQ(t testing.TB) string {
	t.Helper()
	n, err := sharedRabbitMQ.get(rabbitMQ)
	require(t, rabbitMQ, err)
	return n.dsn
}

// RabbitMQServer returns a broker for this test alone. It takes some seconds to start.
func RabbitMQServer(t testing.TB) *Server { t.Helper(); return own(t, rabbitMQ) }

// findRabbitMQ does not look at Debian's /usr/sbin/rabbitmq-server, which only root and rabbitmq may call, and which keeps to the
// directories of the system's own broker.
func findRabbitMQ() (string, error) {
	for _, pattern := range []string{
		"/usr/lib/rabbitmq/bin/rabbitmq-server", "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server",
		"/opt/rabbitmq/sbin/rabbitmq-server", "/opt/homebrew/opt/rabbitmq/sbin/rabbitmq-server",
	} {
		if paths, _ := filepath.Glob(pattern); len(paths) > 0 {
			return paths[len(paths)-1], nil
		}
	}
	if path, err := exec.LookPath("rabbitmq-server"); err == nil && path != "/usr/sbin/rabbitmq-server" {
		return path, nil
	}
	return "", errMissing
}

func prepareRabbitMQ(n *node, program string) error {
	epmd, err := exec.LookPath("epmd")
	if err != nil {
		return fmt.Errorf("epmd, which comes with Erlang: %w", err)
	}
	var ports [3]int
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return err
		}
	}
	for _, file := range []struct{ name, content string }{
		{"rabbitmq.conf", "listeners.tcp.1 = " + address(ports[0]) + "\nlog.file.level = warning\nlog.console = false\n" +
			"vm_memory_high_watermark.absolute = 256MB\ndisk_free_limit.absolute = 50MB\n"},
		{"rabbitmq-env.conf", ""},
		{"enabled_plugins", "[].\n"},
		{"advanced.config", "[].\n"},
		{".erlang.cookie", "LEVADATEST" + strconv.Itoa(ports[1])},
	} {
		if err := n.write(file.name, file.content, 0o600); err != nil {
			return err
		}
	}
	in := func(name string) string { return filepath.Join(n.dir, name) }
	env := []string{
		"ERL_EPMD_ADDRESS=127.0.0.1", "ERL_EPMD_PORT=" + strconv.Itoa(ports[1]),
		"RABBITMQ_DIST_PORT=" + strconv.Itoa(ports[2]), "RABBITMQ_NODENAME=levada" + strconv.Itoa(ports[0]) + "@localhost",
		"RABBITMQ_MNESIA_BASE=" + in("mnesia"), "RABBITMQ_LOG_BASE=" + in("log"), "RABBITMQ_PID_FILE=" + in("mnesia.pidfile"),
		"RABBITMQ_CONFIG_FILE=" + in("rabbitmq.conf"), "RABBITMQ_CONF_ENV_FILE=" + in("rabbitmq-env.conf"),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + in("advanced.config"), "RABBITMQ_ENABLED_PLUGINS_FILE=" + in("enabled_plugins"),
		"RABBITMQ_ALLOW_INPUT=1", // makes the script become the server, so that signals reach it
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-noinput -kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
		"ERL_CRASH_DUMP_BYTES=0",
	}
	n.dsn = "amqp://guest:guest@" + address(ports[0]) + "/"
	n.processes = []process{
		{name: "epmd", argv: []string{epmd, "-address", "127.0.0.1", "-port", strconv.Itoa(ports[1])}, env: env, last: "KILL"},
		{name: "rabbitmq", argv: []string{program}, env: env, last: "KILL"},
	}
	return nil
}

// rabbitMQReady asks for a connection and waits for the broker's first frame (AMQP 0-9-1, section 4.2.2: a method frame of channel 0). The broker opens its listener as
// the last step of its start, so clients can log in then.
func rabbitMQReady(ctx context.Context, n *node) error {
	u, err := url.Parse(n.dsn)
	if err != nil {
		return err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return err
	}
	var header [3]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return err
	}
	if header != [3]byte{1, 0, 0} {
		return fmt.Errorf("the broker answers with % x, want a method frame of channel 0", header)
	}
	return nil
}
