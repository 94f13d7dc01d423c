//go:build unix

package testserver

import (
	"context"
	"syscall"
	"testing"
)

// Spec is a server of a kind that this package does not know. It is a process of the user that runs the tests, and ends with SIGTERM.
type Spec struct {
	Name string // for messages
	// Program returns the server's program, which is started with Args in the directory that Prepare fills.
	Program func() (string, error)
	Args    []string
	// Prepare writes what the server needs into dir, its working directory, and returns the URL for clients and the server's environment. It is called again, up to
	// three times, when the start fails because an address is in use.
	Prepare func(dir string) (dsn string, env []string, err error)
	// Ready returns nil when the server takes connections.
	Ready func(ctx context.Context, dsn string) error
}

// Start returns a server for this test alone.
func Start(t testing.TB, s Spec) *Server {
	t.Helper()
	return own(t, &kind{
		name: s.Name, find: s.Program, signals: [3]syscall.Signal{Fast: syscall.SIGTERM, Immediate: syscall.SIGKILL, Killed: syscall.SIGKILL},
		prepare: func(n *node, program string) error {
			dsn, env, err := s.Prepare(n.dir)
			if err != nil {
				return err
			}
			n.dsn = dsn
			n.processes = []process{{name: "server", argv: append([]string{program}, s.Args...), env: env, last: "KILL"}}
			return nil
		},
		ready: func(ctx context.Context, n *node) error { return s.Ready(ctx, n.dsn) },
	})
}
