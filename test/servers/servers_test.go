//go:build unix

// Package servers tests internal/testserver with clients of its servers, which that module does without.
package servers

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/testserver"
)

func TestPostgresSharedServerGivesEachTestADatabase(t *testing.T) {
	defer goleak.VerifyNone(t)
	var first string
	t.Run("one", func(t *testing.T) {
		first = testserver.Postgres(t)
		mustExec(t, first, "CREATE TABLE here (x int)")
	})
	t.Run("two", func(t *testing.T) {
		second := testserver.Postgres(t)
		if second == first {
			t.Errorf("two tests were given the same database %s", second)
		}
		mustExec(t, second, "CREATE TABLE here (x int)")
	})
	if _, err := pgx.Connect(t.Context(), first); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("the first test's database is still there: %v", err)
	}
}

func TestPostgresServerKeepsWhatWasCommitted(t *testing.T) {
	s := testserver.PostgresServer(t)
	mustExec(t, s.DSN(), "CREATE TABLE kept (x int)")
	for _, how := range []testserver.How{testserver.Fast, testserver.Immediate, testserver.Killed} {
		mustExec(t, s.DSN(), "INSERT INTO kept VALUES (1)")
		s.Stop(how)
		if c, err := pgx.Connect(t.Context(), s.DSN()); err == nil {
			_ = c.Close(t.Context())
			t.Fatal("a stopped server took a connection")
		}
		s.Start()
	}
	c := connect(t, s.DSN())
	var rows int
	if err := c.QueryRow(t.Context(), "SELECT count(*) FROM kept").Scan(&rows); err != nil || rows != 3 {
		t.Errorf("after three restarts there are %d rows of 3 (error %v)", rows, err)
	}
}

func TestPostgresServerFreeze(t *testing.T) {
	s := testserver.PostgresServer(t)
	c := connect(t, s.DSN())
	s.Freeze()
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Exec(short, "SELECT 1"); err == nil {
		t.Error("a frozen server answered")
	}
	s.Thaw()
	mustExec(t, s.DSN(), "SELECT 1")
}

func TestRabbitMQServerRestarts(t *testing.T) {
	s := testserver.RabbitMQServer(t)
	use := func(name string) {
		t.Helper()
		c, err := amqp.Dial(s.DSN())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		ch, err := c.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}); err != nil {
			t.Fatal(err)
		}
	}
	use("a")
	s.Restart(testserver.Fast)
	use("a")
	s.Restart(testserver.Killed)
	use("a")
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func mustExec(t *testing.T, dsn, statement string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), statement); err != nil {
		t.Errorf("%s: %v", statement, err)
	}
	_ = c.Close(t.Context())
}
