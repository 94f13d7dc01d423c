//go:build unix

package testserver

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var postgres = &kind{
	name: "Postgres", owner: []string{"postgres", "nobody"}, install: "postgresql", find: findPostgres,
	prepare: preparePostgres, ready: postgresReady,
	signals: [3]syscall.Signal{Fast: syscall.SIGINT, Immediate: syscall.SIGQUIT, Killed: syscall.SIGKILL},
}

var (
	sharedPostgres shared
	databases      atomic.Int64
)

// Postgres returns the URL of a new, empty database, and of its superuser. The server is the one that all such tests of the binary share.
// The database is dropped at the end of the test, also if somebody is still connected.
func Postgres(t testing.TB) string {
	t.Helper()
	n, err := sharedPostgres.get(postgres)
	require(t, postgres, err)
	name := fmt.Sprintf("test_%d", databases.Add(1))
	if err := administer(n, "CREATE DATABASE "+name); err != nil {
		t.Fatalf("test server: %v", err)
	}
	t.Cleanup(func() {
		if err := administer(n, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("test server: %v", err)
		}
	})
	return postgresURL(n, name)
}

// PostgresServer returns a server with one empty database, for this test alone.
func PostgresServer(t testing.TB) *Server { t.Helper(); return own(t, postgres) }

func administer(n *node, statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return psql(ctx, n.dsn, statement)
}

// psql runs a statement with the program that comes with the server: a client library would become a dependency of all whose tests use this package.
func psql(ctx context.Context, dsn, statement string) error {
	bin, err := findPostgres()
	if err != nil {
		return err
	}
	path := filepath.Join(bin, "psql")
	if _, err := os.Stat(path); err != nil {
		path = "psql"
	}
	cmd := exec.CommandContext(ctx, path, "--no-psqlrc", "--quiet", "--no-password", "-c", statement, dsn)
	cmd.Env = append(os.Environ(), "PGCONNECT_TIMEOUT=10")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("psql: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// findPostgres returns the directory of the programs of the newest version.
func findPostgres() (string, error) {
	newest, found := -1, ""
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin/postgres", "/usr/pgsql-*/bin/postgres", "/opt/homebrew/opt/postgresql@*/bin/postgres"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			if v := lastNumber(filepath.Base(filepath.Dir(filepath.Dir(path)))); v > newest {
				newest, found = v, filepath.Dir(path)
			}
		}
	}
	if found != "" {
		return found, nil
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", errMissing
}

// lastNumber is the number that the name ends with, or 0.
func lastNumber(name string) int {
	digits := len(name)
	for digits > 0 && name[digits-1] >= '0' && name[digits-1] <= '9' {
		digits--
	}
	n, _ := strconv.Atoi(name[digits:])
	return n
}

func preparePostgres(n *node, bin string) error {
	data := filepath.Join(n.dir, "data")
	if _, err := os.Stat(data); err != nil {
		cmd := n.command([]string{filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"}, nil)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("initdb: %w\n%s", err, out)
		}
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	n.dsn = fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable", address(port))
	argv := []string{filepath.Join(bin, "postgres"), "-D", data}
	for _, setting := range []string{
		"listen_addresses=127.0.0.1", "port=" + strconv.Itoa(port), "unix_socket_directories=", "max_connections=200",
		"fsync=on", "synchronous_commit=on", "shared_buffers=64MB", "log_destination=stderr", "logging_collector=off",
	} {
		argv = append(argv, "-c", setting)
	}
	n.processes = []process{{name: "postgres", argv: argv, last: "QUIT"}}
	return nil
}

func postgresURL(n *node, database string) string {
	u, err := url.Parse(n.dsn)
	if err != nil {
		panic(err) // preparePostgres wrote it
	}
	u.Path = "/" + database
	return u.String()
}

func postgresReady(ctx context.Context, n *node) error { return psql(ctx, n.dsn, "SELECT 1") }
