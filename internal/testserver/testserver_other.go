//go:build !unix

package testserver

import (
	"context"
	"testing"
)

const unsupported = "servers for tests are only started on Unix"

// Server is a server that belongs to one test.
type Server struct{ stopped }

type stopped struct{}

func (stopped) DSN() string { return "" }
func (stopped) Dir() string { return "" }
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

// Spec is a server of another kind.
type Spec struct {
	Name    string
	Program func() (string, error)
	Prepare func(dir string) (dsn string, env []string, err error)
	Ready   func(ctx context.Context, dsn string) error
}

// Start skips the test.
func Start(t testing.TB, _ Spec) *Server { t.Helper(); t.Skip(unsupported); return nil }
