//go:build unix

package testserver

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// PgBouncer returns a pooler for this test alone, in front of the server that dsn names. Its DSN leads to the same database. mode is its pool_mode:
// session, transaction or statement.
func PgBouncer(t testing.TB, dsn, mode string) *Server {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	database, user := strings.TrimPrefix(u.Path, "/"), u.User.Username()
	return own(t, &kind{
		name: "PgBouncer", owner: []string{"postgres", "nobody"}, install: "pgbouncer", find: finder("pgbouncer"),
		signals: [3]syscall.Signal{Fast: syscall.SIGTERM, Immediate: syscall.SIGTERM, Killed: syscall.SIGKILL},
		prepare: func(n *node, program string) error {
			port, err := freePort()
			if err != nil {
				return err
			}
			config := fmt.Sprintf("[databases]\n%s = host=%s port=%s user=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = any\npool_mode = %s\nmax_client_conn = 400\ndefault_pool_size = 20\n",
				database, u.Hostname(), u.Port(), user, port, mode)
			if err := n.write("pgbouncer.ini", config, 0o644); err != nil {
				return err
			}
			n.dsn = "postgres://" + user + "@" + address(port) + "/" + database + "?sslmode=disable"
			n.processes = []process{{name: "pgbouncer", argv: []string{program, filepath.Join(n.dir, "pgbouncer.ini")}, last: "KILL"}}
			return nil
		},
		ready: func(ctx context.Context, n *node) error { return psql(ctx, n.dsn, "SELECT 1") },
	})
}
