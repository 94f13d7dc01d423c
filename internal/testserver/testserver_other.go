//go:build !unix

package testserver

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

const unsupported = "servers for tests are only started on Unix"

// Server is a server that belongs to one test.
type Server struct{ stopped }

type stopped struct{}

func (stopped) DSN() string { return "" }
func (stopped) Stop(How)    {}
func (stopped) Start()      {}
func (stopped) Restart(How) {}
func (stopped) Kill()       {}
func (stopped) Freeze()     {}
func (stopped) Thaw()       {}

// Postgres skips the test.
func Postgres(t testing.TB) string { t.Helper(); t.Skip(unsupported); return "" }

// PostgresServer skips the test.
func PostgresServer(t testing.TB) *Server { t.Helper(); t.Skip(unsupported); return nil }

// PgBouncer skips the test.
func PgBouncer(t testing.TB, dsn, mode string) *Server { t.Helper(); t.Skip(unsupported); return nil }

// RabbitMQ skips the test.
func RabbitMQ(t testing.TB) string { t.Helper(); t.Skip(unsupported); return "" }

// RabbitMQServer skips the test.
func RabbitMQServer(t testing.TB) *Server { t.Helper(); t.Skip(unsupported); return nil }

// Program skips the test.
func Program(t testing.TB, name, debian string) string { t.Helper(); t.Skip(unsupported); return "" }

// NATSOption changes nothing.
type NATSOption func()

// NATSStore changes nothing.
func NATSStore(string) NATSOption { return nil }

// NATSSettings changes nothing.
func NATSSettings(string) NATSOption { return nil }

// NATSJetStream changes nothing.
func NATSJetStream(string) NATSOption { return nil }

// NATSLogin changes nothing.
func NATSLogin(string) NATSOption { return nil }

// NATS skips the test.
func NATS(t testing.TB, _ ...NATSOption) *Server { t.Helper(); t.Skip(unsupported); return nil }

// ConnectNATS skips the test.
func ConnectNATS(t testing.TB, _ string) jetstream.JetStream {
	t.Helper()
	t.Skip(unsupported)
	return nil
}

// NATSCluster is never there.
type NATSCluster struct{ Servers []*Server }

// NewNATSCluster skips the test.
func NewNATSCluster(t testing.TB, _ int, _ ...NATSOption) *NATSCluster {
	t.Helper()
	t.Skip(unsupported)
	return nil
}

func (*NATSCluster) URL() string                     { return "" }
func (*NATSCluster) Store(int) string                { return "" }
func (*NATSCluster) Connect() jetstream.JetStream    { return nil }
func (*NATSCluster) WaitReady()                      {}
func (*NATSCluster) Leader(string) int               { return 0 }
func (*NATSCluster) StepDown(string, func(int) bool) {}
