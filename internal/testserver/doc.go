// Package testserver starts real Postgres and RabbitMQ servers for tests: private ones, on free ports of the loopback interface,
// with their data in a directory of their own. Nothing of them is left when the test binary has ended, however it ended.
//
// [Postgres] and [RabbitMQ] share one server per test binary. [PostgresServer] and [RabbitMQServer] start one that the test has to
// itself, and may stop, kill, freeze and start again.
//
// [PgBouncer] puts a connection pooler in front of a Postgres server.
//
// Tests of the libraries use it, so it depends on no client and no driver: it speaks to servers with the programs that they come with. NATS servers are started by
// internal/testnats.
//
// Without the server's program, root on Debian installs its package; elsewhere the test is skipped, or fails if CI is "true".
package testserver

// How a server is stopped.
type How int

const (
	// Fast cuts the connections and shuts down in good order.
	Fast How = iota
	// Immediate shuts down at once; the server has to recover when it starts again. RabbitMQ has no such thing, and is killed.
	Immediate
	// Killed is SIGKILL.
	Killed
)
